# The control plane on Fargate: one task leads, the others wait to take over.
data "aws_caller_identity" "here" {}

data "aws_partition" "here" {}

data "aws_region" "here" {}

locals {
  account = data.aws_caller_identity.here.account_id
  region  = data.aws_region.here.name
  arn     = "arn:${data.aws_partition.here.partition}"
  port    = 8470
  drain_s = 100 # Fargate kills a task 120 s after it asked it to stop

  environment = merge(
    {
      PLATFORM_CAPACITY       = "ec2"
      PLATFORM_EC2_DEPLOYMENT = var.name
      PLATFORM_EC2_QUEUE_URL  = aws_sqs_queue.events.url
      PLATFORM_REDIS_DURABLE  = tostring(var.state.is_durable)
      PLATFORM_RESULTS_URL    = "s3://${var.results_bucket.name}/results"
      PLATFORM_DRAIN_S        = tostring(local.drain_s)
      PLATFORM_KEEP_ALIVE_S   = tostring(var.idle_timeout_s + 15) # else a balancer asks as we close
      PLATFORM_LOG_FORMAT     = "json"
      AWS_DEFAULT_REGION      = local.region
    },
    var.settings,
  )

  secrets_of_task = {
    PLATFORM_REDIS_URL  = var.state.url_secret_arn
    PLATFORM_API_KEY    = var.secret_arns["api-key"]
    PLATFORM_NODE_TOKEN = var.secret_arns["node-token"]
  }
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338:How long is the operator's to choose (log_days); a year of it is costly
  name              = "/firstlight/${var.name}/control-plane"
  retention_in_days = var.log_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}

resource "aws_security_group" "tasks" {
  name_prefix = "${var.name}-control-plane-"
  description = "The control plane"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-control-plane" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "tasks" {
  for_each = { clients = aws_security_group.api.id, machines = aws_security_group.dial.id }

  security_group_id            = aws_security_group.tasks.id
  description                  = "Requests of ${each.key}, through their load balancer"
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
  tags                         = var.tags
}

# To replicas on their ports, the store, AWS, hubs of models and webhooks: which, only the platform knows.
resource "aws_vpc_security_group_egress_rule" "tasks" {
  #checkov:skip=CKV_AWS_382:Models come from hubs and webhooks go to addresses that users name; the network's nat decides whether there is a way out
  security_group_id = aws_security_group.tasks.id
  description       = "Replicas, the store, AWS, hubs, webhooks"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  tags              = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "state" {
  security_group_id            = var.state.security_group_id
  description                  = "The control plane"
  referenced_security_group_id = aws_security_group.tasks.id
  ip_protocol                  = "tcp"
  from_port                    = var.state.port
  to_port                      = var.state.port
  tags                         = var.tags
}

resource "aws_ecs_cluster" "this" {
  name = var.name
  tags = var.tags

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_ecs_task_definition" "this" {
  family                   = var.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory_mib
  execution_role_arn       = aws_iam_role.start.arn
  task_role_arn            = aws_iam_role.task.arn
  tags                     = var.tags

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }

  volume {
    name = "state" # logs and caches; what must survive is in the store
  }

  volume {
    name = "scratch"
  }

  container_definitions = jsonencode([{
    name                   = "control-plane"
    image                  = var.image
    essential              = true
    readonlyRootFilesystem = true
    stopTimeout            = 120
    environment            = [for name, value in local.environment : { name = name, value = value }]
    secrets                = [for name, arn in local.secrets_of_task : { name = name, valueFrom = arn }]
    portMappings           = [{ containerPort = local.port, protocol = "tcp" }]

    mountPoints = [
      { sourceVolume = "state", containerPath = "/state", readOnly = false },
      { sourceVolume = "scratch", containerPath = "/tmp", readOnly = false },
    ]

    linuxParameters = {
      initProcessEnabled = true
      capabilities       = { drop = ["ALL"] }
    }

    ulimits = [{ name = "nofile", softLimit = 65536, hardLimit = 65536 }]

    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this.name
        awslogs-region        = local.region
        awslogs-stream-prefix = "task"
      }
    }
  }])
}

resource "aws_ecs_service" "this" {
  name             = "control-plane"
  cluster          = aws_ecs_cluster.this.id
  task_definition  = aws_ecs_task_definition.this.arn
  desired_count    = var.tasks
  launch_type      = "FARGATE"
  platform_version = "LATEST"
  propagate_tags   = "SERVICE"
  tags             = var.tags

  # Who does not lead is not ready, and ECS would end it for that; with the longest grace there is, it looks at
  # whether the process runs, and load balancers alone look at who is ready.
  health_check_grace_period_seconds = 2147483647

  # A new one cannot be ready beside an old leader, so nothing may wait for that.
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100

  network_configuration {
    subnets          = var.private_subnet_ids
    security_groups  = [aws_security_group.tasks.id]
    assign_public_ip = false
  }

  dynamic "load_balancer" {
    for_each = { api = aws_lb_target_group.api.arn, dial = aws_lb_target_group.dial.arn }

    content {
      target_group_arn = load_balancer.value
      container_name   = "control-plane"
      container_port   = local.port
    }
  }

  depends_on = [
    aws_iam_role_policy.start,
    aws_iam_role_policy.task,
    aws_lb_listener.api,
    aws_lb_listener.dial,
  ]
}
