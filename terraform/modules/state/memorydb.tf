# Acknowledged writes are in a log of several zones. One node: if it is lost, MemoryDB makes another from the log within
# minutes, and meanwhile the platform serves what runs and accepts no jobs. A replica would answer on the same address and
# refuse writes, which clients that know no cluster take for a failure.
resource "aws_memorydb_subnet_group" "this" {
  count = local.is_durable ? 1 : 0

  name       = var.name
  subnet_ids = var.subnet_ids
  tags       = var.tags
}

resource "aws_memorydb_user" "this" {
  count = local.is_durable ? 1 : 0

  user_name     = var.name
  access_string = "on ~* &* +@all -@dangerous +info"
  tags          = var.tags

  authentication_mode {
    type      = "password"
    passwords = [terraform_data.password.output]
  }
}

resource "aws_memorydb_acl" "this" {
  count = local.is_durable ? 1 : 0

  name       = var.name
  user_names = [aws_memorydb_user.this[0].user_name]
  tags       = var.tags
}

resource "aws_memorydb_cluster" "this" {
  count = local.is_durable ? 1 : 0

  name                       = var.name
  description                = "Firstlight: models, jobs, keys, usage"
  engine                     = "valkey"
  engine_version             = "7.3"
  node_type                  = var.node_type
  num_shards                 = 1
  num_replicas_per_shard     = 0
  acl_name                   = aws_memorydb_acl.this[0].name
  subnet_group_name          = aws_memorydb_subnet_group.this[0].name
  security_group_ids         = [aws_security_group.this.id]
  port                       = local.port
  tls_enabled                = true
  kms_key_arn                = var.kms_key_arn
  snapshot_retention_limit   = var.snapshot_days
  auto_minor_version_upgrade = true
  tags                       = var.tags
}
