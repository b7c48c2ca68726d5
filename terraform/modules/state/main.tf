# The store of all that must survive, and its address with its password as a secret.
locals {
  is_durable = var.engine == "memorydb"
  port       = 6379
  host       = one(concat(aws_memorydb_cluster.this[*].cluster_endpoint[0].address, aws_elasticache_replication_group.this[*].primary_endpoint_address))
}

# AWS has no write-only argument for this password, so it is in Terraform's state: keep that encrypted.
data "aws_secretsmanager_random_password" "drawn" {
  password_length     = 40
  exclude_punctuation = true
}

# A data source draws anew at every run; this keeps what it drew first.
resource "terraform_data" "password" {
  input = data.aws_secretsmanager_random_password.drawn.random_password

  lifecycle {
    ignore_changes = [input]
  }
}

resource "aws_security_group" "this" {
  #checkov:skip=CKV2_AWS_5:The store below has it
  name_prefix = "${var.name}-state-"
  description = "The state store: who may reach it is told by rules of others"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-state" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_secretsmanager_secret" "url" {
  #checkov:skip=CKV2_AWS_57:Its password changes with the store's user in one apply; a rotation by itself would lock the platform out
  name                    = "${var.name}/state-url"
  description             = "Address and password of the state store (PLATFORM_REDIS_URL)"
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = var.secret_recovery_days
  tags                    = var.tags
}

resource "aws_secretsmanager_secret_version" "url" {
  secret_id                = aws_secretsmanager_secret.url.id
  secret_string_wo         = "rediss://${local.is_durable ? var.name : ""}:${terraform_data.password.output}@${local.host}:${local.port}/0"
  secret_string_wo_version = 1
}
