mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }

  mock_resource "aws_lb" {
    defaults = {
      arn      = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/prod/1"
      dns_name = "prod-api-1.us-east-1.elb.amazonaws.com"
      zone_id  = "Z1"
    }
  }

  mock_resource "aws_lb_target_group" {
    defaults = { arn = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/prod/1" }
  }
  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:us-east-1:123456789012:prod", url = "https://sqs.us-east-1.amazonaws.com/123456789012/prod" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/task" }
  }
  mock_resource "aws_cloudwatch_event_rule" {
    defaults = { arn = "arn:aws:events:us-east-1:123456789012:rule/prod" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { id = "arn:aws:secretsmanager:us-east-1:123456789012:secret:x", arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:x" }
  }
  mock_resource "aws_ecs_task_definition" {
    defaults = { arn = "arn:aws:ecs:us-east-1:123456789012:task-definition/prod:1" }
  }
}

variables {
  name                 = "prod"
  vpc_id               = "vpc-1"
  private_subnet_ids   = ["subnet-1", "subnet-2"]
  public_subnet_ids    = ["subnet-3", "subnet-4"]
  allowed_cidrs        = ["203.0.113.0/24"]
  certificate_arn      = "arn:aws:acm:us-east-1:123456789012:certificate/1"
  image                = "123456789012.dkr.ecr.us-east-1.amazonaws.com/prod/control-plane:0.1.0"
  image_repository_arn = "arn:aws:ecr:us-east-1:123456789012:repository/prod/control-plane"
  state = {
    url_secret_arn    = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/state-url"
    security_group_id = "sg-state"
    port              = 6379
    is_durable        = true
  }
  secret_arns = {
    api-key    = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/api-key"
    node-token = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/node-token"
  }
  results_bucket     = { name = "prod-results", arn = "arn:aws:s3:::prod-results" }
  weights_bucket_arn = "arn:aws:s3:::prod-weights"
  logs_bucket        = "prod-logs"
  kms_key_arn        = "arn:aws:kms:us-east-1:123456789012:key/1"
}

run "it_answers_under_the_name_of_its_load_balancer" {
  module {
    source = "./modules/control_plane"
  }

  assert {
    condition     = output.url == "https://prod-api-1.us-east-1.elb.amazonaws.com"
    error_message = output.url
  }
}

run "tasks_that_wait_are_not_ended_for_it" {
  module {
    source = "./modules/control_plane"
  }

  assert {
    condition = (
      aws_ecs_service.this.health_check_grace_period_seconds == 2147483647
      && aws_ecs_service.this.deployment_minimum_healthy_percent == 0
      && aws_ecs_service.this.deployment_maximum_percent == 100
    )
    error_message = "Who does not lead is not ready, and must neither be ended nor waited for."
  }

  assert {
    condition     = toset([for it in jsondecode(aws_ecs_task_definition.this.container_definitions)[0].secrets : it.name]) == toset(["PLATFORM_API_KEY", "PLATFORM_NODE_TOKEN", "PLATFORM_REDIS_URL"])
    error_message = "What is secret comes from Secrets Manager."
  }

  assert {
    condition     = one([for it in jsondecode(aws_ecs_task_definition.this.container_definitions)[0].environment : tonumber(it.value) if it.name == "PLATFORM_KEEP_ALIVE_S"]) > aws_lb.api.idle_timeout
    error_message = "The balancer is the one who closes a connection."
  }
}

run "what_nobody_could_call_or_trust_is_refused" {
  command = plan

  module {
    source = "./modules/control_plane"
  }

  variables {
    allowed_cidrs   = []
    certificate_arn = null
    image           = "registry/control-plane:latest"
    memory_mib      = 1000
    secret_arns     = { api-key = "arn" }
    settings        = { REDIS_URL = "x" }
  }

  expect_failures = [
    var.allowed_cidrs,
    var.certificate_arn,
    var.image,
    var.memory_mib,
    var.secret_arns,
    var.settings,
  ]
}
