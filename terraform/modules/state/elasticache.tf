# Two nodes in two zones, the second a moment behind: what was acknowledged last can be lost with the first.
resource "aws_elasticache_subnet_group" "this" {
  count = local.is_durable ? 0 : 1

  name        = var.name
  description = "Private subnets of the Firstlight deployment ${var.name}"
  subnet_ids  = var.subnet_ids
  tags        = var.tags
}

resource "aws_elasticache_parameter_group" "this" {
  count = local.is_durable ? 0 : 1

  name        = var.name
  description = "Nothing is evicted"
  family      = "valkey8"
  tags        = var.tags

  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }
}

resource "aws_elasticache_replication_group" "this" {
  count = local.is_durable ? 0 : 1

  replication_group_id       = var.name
  description                = "Firstlight: models, jobs, keys, usage"
  engine                     = "valkey"
  engine_version             = "8.0"
  node_type                  = var.node_type
  num_cache_clusters         = 2
  automatic_failover_enabled = true
  multi_az_enabled           = true
  parameter_group_name       = aws_elasticache_parameter_group.this[0].name
  subnet_group_name          = aws_elasticache_subnet_group.this[0].name
  security_group_ids         = [aws_security_group.this.id]
  port                       = local.port
  at_rest_encryption_enabled = true
  kms_key_id                 = var.kms_key_arn
  transit_encryption_enabled = true
  auth_token                 = terraform_data.password.output
  snapshot_retention_limit   = var.snapshot_days
  auto_minor_version_upgrade = true
  apply_immediately          = true
  tags                       = var.tags
}
