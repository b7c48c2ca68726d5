mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:prod-alarms" }
  }
}

variables {
  name = "prod"
  watch = {
    cluster       = "prod"
    service       = "control-plane"
    load_balancer = "app/prod-api/1"
    target_group  = "targetgroup/prod-api/1"
    log_group     = "/firstlight/prod/control-plane"
    queue         = "prod-capacity-events"
    unread_queue  = "prod-capacity-events-unread"
  }
  state_metrics = { namespace = "AWS/MemoryDB", dimensions = { ClusterName = "prod" } }
  group_names   = ["prod-l4-g6-xlarge-on-demand"]
  kms_key_arn   = "arn:aws:kms:us-east-1:123456789012:key/1"
}

run "alarms_go_out_and_a_budget_only_where_one_is_named" {
  module {
    source = "./modules/observability"
  }

  assert {
    condition     = length(aws_budgets_budget.monthly) == 0 && alltrue([for it in aws_cloudwatch_metric_alarm.this : it.alarm_actions == toset([aws_sns_topic.alarms.arn])])
    error_message = "Every alarm is published."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.this["nobody-leads"].treat_missing_data == "breaching"
    error_message = "Where nothing is measured, nobody leads."
  }
}

run "a_budget_counts_what_bears_the_deployments_tag" {
  module {
    source = "./modules/observability"
  }

  variables {
    monthly_budget_usd = 500
    emails             = ["ops@example.org"]
  }

  assert {
    condition     = [for it in aws_budgets_budget.monthly[0].cost_filter : it.values] == [tolist(["user:deployment$prod"])]
    error_message = jsonencode([for it in aws_budgets_budget.monthly[0].cost_filter : it.values])
  }
}

run "no_address_and_no_budget_of_nothing" {
  command = plan

  module {
    source = "./modules/observability"
  }

  variables {
    emails             = ["ops"]
    monthly_budget_usd = 0
    group_names        = []
  }

  expect_failures = [var.emails, var.monthly_budget_usd, var.group_names]
}
