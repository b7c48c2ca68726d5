output "for_control_plane" {
  description = "The secret with the store's address and password, its security group, its port, and whether every acknowledged write survives the loss of a machine and of a zone."
  value = {
    url_secret_arn    = aws_secretsmanager_secret.url.arn
    security_group_id = aws_security_group.this.id
    port              = local.port
    is_durable        = local.is_durable
  }

  # Who starts with it must find it filled.
  depends_on = [aws_secretsmanager_secret_version.url]
}

output "metrics" {
  description = "Namespace and dimensions of its metrics in CloudWatch, for alarms."
  value = local.is_durable ? {
    namespace  = "AWS/MemoryDB"
    dimensions = { ClusterName = aws_memorydb_cluster.this[0].name }
    } : {
    namespace  = "AWS/ElastiCache"
    dimensions = { ReplicationGroupId = aws_elasticache_replication_group.this[0].replication_group_id }
  }
}
