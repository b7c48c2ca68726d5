# What ECS may do to start a task, and what the task may do.
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ecs-tasks.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

data "aws_iam_policy_document" "start" {
  #checkov:skip=CKV_AWS_356:ecr:GetAuthorizationToken knows no resources
  statement {
    sid       = "LogInToTheRegistry"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    sid       = "PullTheImage"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = [var.image_repository_arn]
  }

  statement {
    sid       = "WriteTheLog"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.this.arn}:*"]
  }

  statement {
    sid       = "ReadItsSecrets"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = values(local.secrets_of_task)
  }

  statement {
    sid       = "DecryptThem"
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["secretsmanager.${local.region}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "task" {
  #checkov:skip=CKV_AWS_356:Describing groups and instances knows no resources; everything that changes something is bound to this deployment
  statement {
    sid = "SeeMachines"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLifecycleHooks",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeWarmPool",
      "ec2:DescribeInstances",
      "ec2:DescribeInstanceStatus",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:DescribeSubnets",
    ]
    resources = ["*"]
  }

  statement {
    sid = "MoveMachinesOfThisDeployment"
    actions = [
      "autoscaling:CompleteLifecycleAction",
      "autoscaling:LaunchInstances",
      "autoscaling:PutWarmPool",
      "autoscaling:RecordLifecycleActionHeartbeat",
      "autoscaling:SetDesiredCapacity",
      "autoscaling:SetInstanceHealth",
      "autoscaling:SetInstanceProtection",
      "autoscaling:TerminateInstanceInAutoScalingGroup",
    ]
    resources = ["${local.arn}:autoscaling:${local.region}:${local.account}:autoScalingGroup:*:autoScalingGroupName/${var.name}-*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/firstlight:deployment"
      values   = [var.name]
    }
  }

  statement {
    sid       = "EndOrphansOfThisDeployment"
    actions   = ["ec2:CreateTags", "ec2:TerminateInstances"]
    resources = ["${local.arn}:ec2:${local.region}:${local.account}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/firstlight:deployment"
      values   = [var.name]
    }
  }

  # LaunchInstances asks for what a launch of the group's template asks for.
  statement {
    sid       = "LaunchByTemplatesOfThisDeployment"
    actions   = ["ec2:CreateFleet", "ec2:RunInstances"]
    resources = ["${local.arn}:ec2:${local.region}:${local.account}:launch-template/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/firstlight:deployment"
      values   = [var.name]
    }
  }

  statement {
    sid     = "LaunchByTemplatesOnly"
    actions = ["ec2:CreateFleet", "ec2:RunInstances"]
    resources = concat(
      [for kind in ["fleet", "instance", "network-interface", "security-group", "subnet", "volume"] : "${local.arn}:ec2:${local.region}:${local.account}:${kind}/*"],
      ["${local.arn}:ec2:${local.region}::image/*"],
    )

    condition {
      test     = "ArnLike"
      variable = "ec2:LaunchTemplate"
      values   = ["${local.arn}:ec2:${local.region}:${local.account}:launch-template/*"]
    }
  }

  statement {
    sid       = "GiveMachinesTheirRole"
    actions   = ["iam:PassRole"]
    resources = ["${local.arn}:iam::${local.account}:role/${var.name}-node-*"]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }

  statement {
    sid       = "HearOfThem"
    actions   = ["sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"]
    resources = [aws_sqs_queue.events.arn]
  }

  statement {
    sid       = "KeepResults"
    actions   = ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
    resources = ["${var.results_bucket.arn}/results/*"]
  }

  statement {
    sid       = "LookAtModels"
    actions   = ["s3:GetObject"]
    resources = ["${var.weights_bucket_arn}/*"]
  }

  statement {
    sid       = "ListBoth"
    actions   = ["s3:ListBucket"]
    resources = [var.results_bucket.arn, var.weights_bucket_arn]
  }

  statement {
    sid       = "UseTheKeyForThat"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${local.region}.amazonaws.com", "sqs.${local.region}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "start" {
  name_prefix        = "${var.name}-start-"
  description        = "ECS starts the control plane"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "start" {
  name_prefix = "start-"
  role        = aws_iam_role.start.id
  policy      = data.aws_iam_policy_document.start.json
}

resource "aws_iam_role" "task" {
  name_prefix        = "${var.name}-control-plane-"
  description        = "The control plane"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "task" {
  name_prefix = "run-"
  role        = aws_iam_role.task.id
  policy      = data.aws_iam_policy_document.task.json
}
