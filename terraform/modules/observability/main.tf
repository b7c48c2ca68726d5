# What wakes somebody up. How requests and cold starts fare is told by the platform's own metrics; here is what it cannot
# say of itself: that it is gone, that its store fills up, that machines cannot be had, that money runs out.
data "aws_caller_identity" "here" {}

data "aws_region" "here" {}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
  tags              = var.tags
}

data "aws_iam_policy_document" "alarms" {
  statement {
    sid       = "AlarmsOfThisAccount"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.alarms.arn]

    principals {
      type        = "Service"
      identifiers = ["budgets.amazonaws.com", "cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.here.account_id]
    }
  }
}

resource "aws_sns_topic_policy" "alarms" {
  arn    = aws_sns_topic.alarms.arn
  policy = data.aws_iam_policy_document.alarms.json
}

resource "aws_sns_topic_subscription" "email" {
  for_each = var.emails

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.key
}

locals {
  balancer = { LoadBalancer = var.watch.load_balancer }
  target   = { LoadBalancer = var.watch.load_balancer, TargetGroup = var.watch.target_group }
  service  = { ClusterName = var.watch.cluster, ServiceName = var.watch.service }

  alarms = {
    nobody-leads = {
      why        = "No control plane is ready: every request gets a 503"
      namespace  = "AWS/ApplicationELB"
      metric     = "HealthyHostCount"
      dimensions = local.target
      statistic  = "Maximum"
      is         = "LessThanThreshold"
      than       = 1
      minutes    = 3
      missing    = "breaching"
    }
    errors = {
      why        = "Requests end with 5xx of the platform"
      namespace  = "AWS/ApplicationELB"
      metric     = "HTTPCode_Target_5XX_Count"
      dimensions = local.balancer
      statistic  = "Sum"
      is         = "GreaterThanThreshold"
      than       = 20
      minutes    = 5
      missing    = "notBreaching"
    }
    memory = {
      why        = "The control plane's memory fills up with held requests"
      namespace  = "AWS/ECS"
      metric     = "MemoryUtilization"
      dimensions = local.service
      statistic  = "Maximum"
      is         = "GreaterThanThreshold"
      than       = 85
      minutes    = 5
      missing    = "notBreaching"
    }
    store-full = {
      why        = "The store's memory is nearly full; when it is, jobs are refused"
      namespace  = var.state_metrics.namespace
      metric     = "DatabaseMemoryUsagePercentage"
      dimensions = var.state_metrics.dimensions
      statistic  = "Maximum"
      is         = "GreaterThanThreshold"
      than       = 80
      minutes    = 5
      missing    = "notBreaching"
    }
    events-unread = {
      why        = "Events of machines could not be read"
      namespace  = "AWS/SQS"
      metric     = "ApproximateNumberOfMessagesVisible"
      dimensions = { QueueName = var.watch.unread_queue }
      statistic  = "Maximum"
      is         = "GreaterThanThreshold"
      than       = 0
      minutes    = 5
      missing    = "notBreaching"
    }
    events-late = {
      why        = "Nobody reads the events of machines"
      namespace  = "AWS/SQS"
      metric     = "ApproximateAgeOfOldestMessage"
      dimensions = { QueueName = var.watch.queue }
      statistic  = "Maximum"
      is         = "GreaterThanThreshold"
      than       = 300
      minutes    = 5
      missing    = "notBreaching"
    }
    defects = {
      why        = "The control plane logged errors, such as jobs that are not durable"
      namespace  = "Firstlight/${var.name}"
      metric     = "Errors"
      dimensions = {}
      statistic  = "Sum"
      is         = "GreaterThanThreshold"
      than       = 0
      minutes    = 5
      missing    = "notBreaching"
    }
  }
}

resource "aws_cloudwatch_log_metric_filter" "errors" {
  name           = "${var.name}-errors"
  log_group_name = var.watch.log_group
  pattern        = "{ $.level = \"error\" || $.level = \"critical\" }"

  metric_transformation {
    name      = "Errors"
    namespace = "Firstlight/${var.name}"
    value     = "1"
  }
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.why
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = each.value.is
  threshold           = each.value.than
  period              = 60
  evaluation_periods  = each.value.minutes
  datapoints_to_alarm = each.value.statistic == "Sum" ? 1 : each.value.minutes
  treat_missing_data  = each.value.missing
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tags
}

resource "aws_budgets_budget" "monthly" {
  count = var.monthly_budget_usd == null ? 0 : 1

  name         = "${var.name}-monthly"
  budget_type  = "COST"
  limit_amount = tostring(var.monthly_budget_usd)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  cost_filter {
    name   = "TagKeyValue"
    values = [format("user:deployment$%s", var.name)]
  }

  dynamic "notification" {
    for_each = [
      { type = "ACTUAL", percent = 80 },
      { type = "ACTUAL", percent = 100 },
      { type = "FORECASTED", percent = 100 },
    ]

    content {
      notification_type         = notification.value.type
      threshold                 = notification.value.percent
      threshold_type            = "PERCENTAGE"
      comparison_operator       = "GREATER_THAN"
      subscriber_sns_topic_arns = [aws_sns_topic.alarms.arn]
    }
  }

  depends_on = [aws_sns_topic_policy.alarms]
}
