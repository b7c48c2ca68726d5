mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"] }
  }

  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }

  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/flow" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:flow" }
  }
}

variables {
  name        = "prod"
  kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/1"
}

run "one_gateway_serves_two_zones" {
  command = plan

  module {
    source = "./modules/network"
  }

  assert {
    condition     = output.zones == tolist(["us-east-1a", "us-east-1b"])
    error_message = "Zones: ${jsonencode(output.zones)}"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.out) == 2
    error_message = "There are ${length(aws_nat_gateway.this)} gateways and ${length(aws_route.out)} routes to them."
  }

  assert {
    condition     = toset([for it in aws_subnet.private : it.cidr_block]) == toset(["10.60.0.0/20", "10.60.16.0/20"])
    error_message = "Private: ${jsonencode([for it in aws_subnet.private : it.cidr_block])}"
  }

  assert {
    condition     = alltrue([for it in aws_subnet.public : it.map_public_ip_on_launch == false])
    error_message = "Machines get no public addresses, in public subnets neither."
  }
}

run "without_a_way_out_there_is_none" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    nat = "none"
  }

  assert {
    condition     = length(aws_nat_gateway.this) + length(aws_eip.nat) + length(aws_route.out) == 0
    error_message = "A gateway costs, and leads out."
  }
}

run "a_gateway_in_each_zone" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    nat        = "per_zone"
    zone_count = 3
    cidr       = "10.0.0.0/18"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3
    error_message = "There are ${length(aws_nat_gateway.this)}."
  }
}

run "what_makes_no_network_is_refused" {
  command = plan

  module {
    source = "./modules/network"
  }

  variables {
    name  = "Prod"
    cidr  = "10.0.0.0/24"
    nat   = "two"
    zones = ["us-east-1a"]
  }

  expect_failures = [var.name, var.cidr, var.nat, var.zones]
}
