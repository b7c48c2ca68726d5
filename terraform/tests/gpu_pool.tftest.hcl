mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }

  mock_data "aws_ssm_parameter" {
    defaults = { insecure_value = "ami-0123456789abcdef0" }
  }

  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }

  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/node" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/node" }
  }
}

variables {
  name      = "prod"
  gpu_class = "l4"
  machines = {
    "g6.xlarge"  = { on_demand = 4, price_per_hour = 0.8, spot = 8 }
    "g6.2xlarge" = { spot = 2, spot_price_per_hour = 0.4 }
  }
  vpc_id     = "vpc-1"
  subnet_ids = ["subnet-1", "subnet-2"]
  control_plane = {
    url                    = "http://dial.internal:8470"
    port                   = 8470
    dial_security_group_id = "sg-dial"
    security_group_id      = "sg-tasks"
    token_secret_arn       = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/node-token"
  }
  worker_image          = "123456789012.dkr.ecr.us-east-1.amazonaws.com/prod/worker:0.1.0"
  worker_repository_arn = "arn:aws:ecr:us-east-1:123456789012:repository/prod/worker"
  node_package = {
    url    = "s3://prod-weights/node/1.tar.gz"
    sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
  }
  weights_bucket_arn = "arn:aws:s3:::prod-weights"
  kms_key_arn        = "arn:aws:kms:us-east-1:123456789012:key/1"
}

run "a_group_for_each_type_and_purchase" {
  module {
    source = "./modules/gpu_pool"
  }

  assert {
    condition = output.group_names == {
      "g6-xlarge-on-demand" = "prod-l4-g6-xlarge-on-demand"
      "g6-xlarge-spot"      = "prod-l4-g6-xlarge-spot"
      "g6-2xlarge-spot"     = "prod-l4-g6-2xlarge-spot"
    }
    error_message = "Groups: ${jsonencode(output.group_names)}"
  }
}

run "only_machines_on_demand_wait_stopped" {
  module {
    source = "./modules/gpu_pool"
  }

  assert {
    condition     = { for key, it in aws_autoscaling_group.this : key => length(it.warm_pool) } == { "g6-xlarge-on-demand" = 1, "g6-xlarge-spot" = 0, "g6-2xlarge-spot" = 0 }
    error_message = "Warm pools: ${jsonencode({ for key, it in aws_autoscaling_group.this : key => length(it.warm_pool) })}"
  }

  assert {
    condition     = alltrue([for it in aws_launch_template.this : it.metadata_options[0].http_tokens == "required" && it.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "Only the machine itself asks for its metadata, and only with a token."
  }
}

run "a_machine_is_told_its_group_and_no_secret" {
  module {
    source = "./modules/gpu_pool"
  }

  assert {
    condition     = strcontains(output.user_data["g6-xlarge-spot"], "PLATFORM_NODE_GROUP='prod-l4-g6-xlarge-spot'")
    error_message = "The agent ends the hooks of its group."
  }

  assert {
    condition     = !strcontains(output.user_data["g6-xlarge-spot"], "PLATFORM_NODE_TOKEN=") && length(output.user_data["g6-xlarge-spot"]) < 8192
    error_message = "User data can be read by whoever may describe the machine, and has 16 KiB."
  }
}

run "what_is_no_pool_is_refused" {
  command = plan

  module {
    source = "./modules/gpu_pool"
  }

  variables {
    gpu_class    = "L4!"
    machines     = { "g6.xlarge" = {} }
    settings     = { PLATFORM_NODE_LOG_LEVEL = "'; reboot #" }
    worker_image = "registry/worker:latest"
    root_volume  = { gib = 10 }
  }

  expect_failures = [var.gpu_class, var.machines, var.settings, var.worker_image, var.root_volume]
}
