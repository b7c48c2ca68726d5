# Three buckets: weights that nodes read, results that jobs leave, and who accessed what.
locals {
  buckets = toset(["weights", "results", "logs"])
  days    = { results = var.result_days, logs = var.log_days }
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_144:Weights can be uploaded again, results are kept for days; a second region doubles the price
  #checkov:skip=CKV2_AWS_62:Nobody waits for events of these buckets
  #checkov:skip=CKV_AWS_145:The bucket of access logs cannot have a key of ours: load balancers write to it; the others have one
  #checkov:skip=CKV_AWS_18:Weights and results log into the third; a log of the log would log itself
  #checkov:skip=CKV_AWS_21:All three are versioned below, by for_each, which the check cannot follow
  #checkov:skip=CKV2_AWS_6:All three are blocked below, by for_each, which the check cannot follow
  #checkov:skip=CKV2_AWS_61:All three have a lifecycle below, by for_each, which the check cannot follow
  for_each = local.buckets

  bucket_prefix = "${var.name}-${each.key}-"
  force_destroy = var.force_destroy || each.key == "logs"
  tags          = merge(var.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_s3_bucket_public_access_block" "this" {
  for_each = aws_s3_bucket.this

  bucket                  = each.value.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id

  rule {
    bucket_key_enabled = each.key != "logs"

    apply_server_side_encryption_by_default {
      sse_algorithm     = each.key == "logs" ? "AES256" : "aws:kms"
      kms_master_key_id = each.key == "logs" ? null : aws_kms_key.this.arn
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id

  rule {
    id     = "uploads-that-broke-off"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  rule {
    id     = "what-was-replaced"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = each.key == "weights" ? 30 : 1
    }
  }

  dynamic "rule" {
    for_each = { for name, days in local.days : name => days if name == each.key }

    content {
      id     = "what-is-old"
      status = "Enabled"
      filter {}

      expiration {
        days = rule.value
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

resource "aws_s3_bucket_logging" "this" {
  for_each = { for name, bucket in aws_s3_bucket.this : name => bucket if name != "logs" }

  bucket        = each.value.id
  target_bucket = aws_s3_bucket.this["logs"].id
  target_prefix = "s3/" # each line names its bucket

  depends_on = [aws_s3_bucket_policy.this]
}

locals {
  log_writers = {
    OfBuckets = {
      service    = "logging.s3.amazonaws.com"
      prefix     = "s3/*"
      conditions = { "aws:SourceAccount" = local.account }
    }
    # The account in the path is what keeps others' load balancers out.
    OfLoadBalancers = {
      service    = "logdelivery.elasticloadbalancing.amazonaws.com"
      prefix     = "alb/AWSLogs/${local.account}/*"
      conditions = {}
    }
  }
}

data "aws_iam_policy_document" "bucket" {
  for_each = local.buckets

  statement {
    sid       = "NothingWithoutTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.this[each.key].arn, "${aws_s3_bucket.this[each.key].arn}/*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  dynamic "statement" {
    for_each = each.key == "logs" ? local.log_writers : {}

    content {
      sid       = statement.key
      actions   = ["s3:PutObject"]
      resources = ["${aws_s3_bucket.this["logs"].arn}/${statement.value.prefix}"]

      principals {
        type        = "Service"
        identifiers = [statement.value.service]
      }

      dynamic "condition" {
        for_each = statement.value.conditions

        content {
          test     = "StringEquals"
          variable = condition.key
          values   = [condition.value]
        }
      }
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id
  policy = data.aws_iam_policy_document.bucket[each.key].json

  depends_on = [aws_s3_bucket_public_access_block.this]
}

# What GPU machines run. The name has its digest, so an old machine finds what it was started for.
resource "aws_s3_object" "node_package" {
  bucket        = aws_s3_bucket.this["weights"].id
  key           = "node/${substr(filesha256(var.node_package), 0, 16)}.tar.gz"
  source        = var.node_package
  source_hash   = filesha256(var.node_package)
  kms_key_id    = aws_kms_key.this.arn
  force_destroy = true
  tags          = var.tags

  depends_on = [aws_s3_bucket_server_side_encryption_configuration.this]
}
