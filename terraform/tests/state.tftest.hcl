mock_provider "aws" {
  mock_data "aws_secretsmanager_random_password" {
    defaults = { random_password = "drawn-by-secrets-manager" }
  }

  mock_resource "aws_secretsmanager_secret" {
    defaults = {
      id  = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/state-url"
      arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/state-url"
    }
  }

  mock_resource "aws_memorydb_cluster" {
    defaults = { cluster_endpoint = [{ address = "clustercfg.prod.memorydb.us-east-1.amazonaws.com", port = 6379 }] }
  }

  mock_resource "aws_elasticache_replication_group" {
    defaults = { primary_endpoint_address = "master.prod.cache.amazonaws.com" }
  }
}

variables {
  name        = "prod"
  vpc_id      = "vpc-1"
  subnet_ids  = ["subnet-1", "subnet-2"]
  kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/1"
}

run "what_is_acknowledged_is_kept_unless_somebody_says_otherwise" {
  module {
    source = "./modules/state"
  }

  assert {
    condition     = output.for_control_plane.is_durable && length(aws_elasticache_replication_group.this) == 0
    error_message = "The default keeps what it acknowledges."
  }

  assert {
    condition = (
      aws_memorydb_cluster.this[0].num_shards == 1
      && aws_memorydb_cluster.this[0].num_replicas_per_shard == 0
      && aws_memorydb_cluster.this[0].tls_enabled
    )
    error_message = "Clients that know no cluster need one node, and TLS."
  }
}

run "elasticache_is_encrypted_in_two_zones_and_not_called_durable" {
  module {
    source = "./modules/state"
  }

  variables {
    engine    = "elasticache"
    node_type = "cache.t4g.small"
  }

  assert {
    condition     = !output.for_control_plane.is_durable && length(aws_memorydb_cluster.this) == 0
    error_message = "A failover can lose what it acknowledged last."
  }

  assert {
    condition = alltrue([
      aws_elasticache_replication_group.this[0].multi_az_enabled,
      aws_elasticache_replication_group.this[0].automatic_failover_enabled,
      tobool(aws_elasticache_replication_group.this[0].at_rest_encryption_enabled),
      aws_elasticache_replication_group.this[0].transit_encryption_enabled,
    ])
    error_message = "Two zones, failover, encryption at rest and in transit."
  }
}

run "types_of_the_other_engine_and_single_zones_are_refused" {
  command = plan

  module {
    source = "./modules/state"
  }

  variables {
    node_type     = "cache.t4g.small"
    subnet_ids    = ["subnet-1"]
    snapshot_days = 36
  }

  expect_failures = [var.node_type, var.subnet_ids, var.snapshot_days]
}
