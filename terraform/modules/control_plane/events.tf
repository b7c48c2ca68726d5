# What happens to machines: AWS tells EventBridge, the control plane reads it from one queue.
resource "aws_sqs_queue" "unread" {
  name                      = "${var.name}-capacity-events-unread"
  message_retention_seconds = 14 * 24 * 3600
  kms_master_key_id         = var.kms_key_arn
  tags                      = var.tags
}

resource "aws_sqs_queue" "events" {
  name                       = "${var.name}-capacity-events"
  message_retention_seconds  = 3600 # an older event says nothing that describing the groups does not
  visibility_timeout_seconds = 30
  receive_wait_time_seconds  = 20
  kms_master_key_id          = var.kms_key_arn
  tags                       = var.tags

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.unread.arn
    maxReceiveCount     = 5
  })
}

locals {
  # Events of EC2 name an instance and no tag, so those of strangers in the account come along and are passed over.
  events = {
    spot-interruption = { source = "aws.ec2", types = ["EC2 Spot Instance Interruption Warning"], groups = null }
    rebalance         = { source = "aws.ec2", types = ["EC2 Instance Rebalance Recommendation"], groups = null }
    state-change      = { source = "aws.ec2", types = ["EC2 Instance State-change Notification"], groups = null }
    groups = {
      source = "aws.autoscaling"
      types = [
        "EC2 Instance Launch Successful",
        "EC2 Instance Launch Unsuccessful",
        "EC2 Instance Terminate Successful",
        "EC2 Instance Terminate Unsuccessful",
        "EC2 Instance-launch Lifecycle Action",
        "EC2 Instance-terminate Lifecycle Action",
      ]
      groups = [{ prefix = "${var.name}-" }]
    }
  }
}

resource "aws_cloudwatch_event_rule" "capacity" {
  for_each = local.events

  name        = "${var.name}-${each.key}"
  description = "What happens to machines of the Firstlight deployment ${var.name}"
  tags        = var.tags

  event_pattern = jsonencode(merge(
    { source = [each.value.source], "detail-type" = each.value.types },
    each.value.groups == null ? {} : { detail = { AutoScalingGroupName = each.value.groups } },
  ))
}

resource "aws_cloudwatch_event_target" "queue" {
  for_each = aws_cloudwatch_event_rule.capacity

  rule = each.value.name
  arn  = aws_sqs_queue.events.arn

  dead_letter_config {
    arn = aws_sqs_queue.unread.arn
  }
}

data "aws_iam_policy_document" "queue" {
  for_each = { events = aws_sqs_queue.events, unread = aws_sqs_queue.unread }

  statement {
    sid       = "OurRules"
    actions   = ["sqs:SendMessage"]
    resources = [each.value.arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [for rule in aws_cloudwatch_event_rule.capacity : rule.arn]
    }
  }
}

resource "aws_sqs_queue_policy" "this" {
  for_each = { events = aws_sqs_queue.events.url, unread = aws_sqs_queue.unread.url }

  queue_url = each.value
  policy    = data.aws_iam_policy_document.queue[each.key].json
}
