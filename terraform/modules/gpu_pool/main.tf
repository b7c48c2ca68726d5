# Machines with one class of GPU: a group for each instance type and way of buying it, empty until the control plane wants
# some. One type a group, because the control plane itself goes from the cheapest to the next where there is none to be had,
# and because a warm pool and a price need to know what they are of.
data "aws_caller_identity" "here" {}

data "aws_partition" "here" {}

data "aws_region" "here" {}

data "aws_ssm_parameter" "ami" {
  name = var.ami_ssm_parameter
}

locals {
  account = data.aws_caller_identity.here.account_id
  region  = data.aws_region.here.name
  arn     = "arn:${data.aws_partition.here.partition}"

  groups = merge(
    { for type, it in var.machines : "${replace(type, ".", "-")}-on-demand" => {
      type     = type
      is_spot  = false
      max_size = it.on_demand
      price    = it.price_per_hour
    } if it.on_demand > 0 },
    { for type, it in var.machines : "${replace(type, ".", "-")}-spot" => {
      type     = type
      is_spot  = true
      max_size = it.spot
      price    = it.spot_price_per_hour
    } if it.spot > 0 },
  )

  # What the control plane finds a group by, and knows of it. Its machines bear the same.
  group_tags = { for key, group in local.groups : key => merge(
    var.tags,
    {
      "Name"                     = "${var.name}-${var.gpu_class}-${key}"
      "firstlight:deployment"    = var.name
      "firstlight:gpu-class"     = var.gpu_class
      "firstlight:instance-type" = group.type
      "firstlight:purchase"      = group.is_spot ? "spot" : "on-demand"
      "firstlight:ttl-s"         = tostring(var.orphan_after_s)
    },
    group.price == null ? {} : { "firstlight:price-per-hour" = tostring(group.price) },
  ) }
}

resource "aws_launch_template" "this" {
  for_each = local.groups

  name_prefix            = "${var.name}-${var.gpu_class}-${each.key}-"
  description            = "GPU machines of Firstlight: ${each.key}"
  image_id               = data.aws_ssm_parameter.ami.insecure_value
  instance_type          = each.value.type
  ebs_optimized          = true
  update_default_version = true
  user_data              = base64encode(local.user_data[each.key])
  vpc_security_group_ids = [aws_security_group.machines.id]
  tags                   = local.group_tags[each.key]

  iam_instance_profile {
    arn = aws_iam_instance_profile.machine.arn
  }

  # Nobody but the machine itself asks it who it is: workers have no network, so one hop is enough for the agent.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  monitoring {
    enabled = true
  }

  # The account's own key for volumes: with another one Auto Scaling needs a grant before its first machine.
  block_device_mappings {
    device_name = var.root_volume.device

    ebs {
      volume_type           = "gp3"
      volume_size           = var.root_volume.gib
      iops                  = var.root_volume.iops
      throughput            = var.root_volume.mib_per_s
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "instance_market_options" {
    for_each = each.value.is_spot ? [1] : []

    content {
      market_type = "spot"

      spot_options {
        spot_instance_type             = "one-time"
        instance_interruption_behavior = "terminate"
      }
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume", "network-interface"])

    content {
      resource_type = tag_specifications.key
      tags          = local.group_tags[each.key]
    }
  }

  lifecycle {
    create_before_destroy = true

    precondition {
      condition     = length(local.user_data[each.key]) <= 16384
      error_message = "AWS takes 16 KiB of user data, and this is ${length(local.user_data[each.key])} bytes: shorten `settings`."
    }
  }
}

resource "aws_autoscaling_group" "this" {
  for_each = local.groups

  name                      = "${var.name}-${var.gpu_class}-${each.key}"
  min_size                  = 0
  max_size                  = each.value.max_size
  desired_capacity          = 0
  vpc_zone_identifier       = var.subnet_ids
  health_check_type         = "EC2"
  health_check_grace_period = var.launch_timeout_s
  default_cooldown          = 0
  protect_from_scale_in     = true            # the control plane says which machine goes
  suspended_processes       = ["AZRebalance"] # it would end machines that serve
  capacity_rebalance        = false           # the control plane drains when it is told
  wait_for_capacity_timeout = "0"
  enabled_metrics           = ["GroupDesiredCapacity", "GroupInServiceInstances", "WarmPoolTotalCapacity"]
  force_delete              = true
  force_delete_warm_pool    = true

  launch_template {
    id      = aws_launch_template.this[each.key].id
    version = aws_launch_template.this[each.key].latest_version
  }

  # Ended by the agent when it is really ready; who never says so is given up.
  initial_lifecycle_hook {
    name                 = "firstlight-launching"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    default_result       = "ABANDON"
    heartbeat_timeout    = var.launch_timeout_s
  }

  # Ended by the agent when it has drained.
  initial_lifecycle_hook {
    name                 = "firstlight-terminating"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    default_result       = "CONTINUE"
    heartbeat_timeout    = 120
  }

  # Empty until the control plane sizes it; spot machines cannot be stopped for later.
  dynamic "warm_pool" {
    for_each = each.value.is_spot ? [] : [1]

    content {
      pool_state                  = "Stopped" # no type with a GPU hibernates
      min_size                    = 0
      max_group_prepared_capacity = 0

      instance_reuse_policy {
        reuse_on_scale_in = true
      }
    }
  }

  dynamic "tag" {
    for_each = local.group_tags[each.key]

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  # How many machines run and how many are stopped is the control plane's to decide.
  lifecycle {
    ignore_changes = [
      desired_capacity,
      warm_pool[0].min_size,
      warm_pool[0].max_group_prepared_capacity,
    ]
  }

  depends_on = [aws_iam_role_policy.machine]
}
