# What a machine may do: fetch its code, images and weights, show its token, and end the hooks of its own group.
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "machine" {
  #checkov:skip=CKV_AWS_356:ecr:GetAuthorizationToken knows no resources
  statement {
    sid       = "LogInToTheRegistry"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    sid       = "PullImages"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = [var.worker_repository_arn]
  }

  statement {
    sid       = "ReadWeightsAndItsCode"
    actions   = ["s3:GetObject"]
    resources = [for arn in concat([var.weights_bucket_arn], var.further_bucket_arns) : "${arn}/*"]
  }

  statement {
    sid       = "ListThem"
    actions   = ["s3:ListBucket"]
    resources = concat([var.weights_bucket_arn], var.further_bucket_arns)
  }

  statement {
    sid       = "ReadItsToken"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.control_plane.token_secret_arn]
  }

  statement {
    sid       = "DecryptBoth"
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${local.region}.amazonaws.com", "secretsmanager.${local.region}.amazonaws.com"]
    }
  }

  statement {
    sid       = "EndHooksOfThisPool"
    actions   = ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"]
    resources = ["${local.arn}:autoscaling:${local.region}:${local.account}:autoScalingGroup:*:autoScalingGroupName/${var.name}-${var.gpu_class}-*"]
  }
}

resource "aws_iam_role" "machine" {
  name_prefix        = "${var.name}-node-"
  description        = "GPU machines of class ${var.gpu_class}"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "machine" {
  name_prefix = "run-"
  role        = aws_iam_role.machine.id
  policy      = data.aws_iam_policy_document.machine.json
}

resource "aws_iam_instance_profile" "machine" {
  name_prefix = "${var.name}-node-"
  role        = aws_iam_role.machine.name
  tags        = var.tags
}
