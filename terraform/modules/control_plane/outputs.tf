output "url" {
  description = "Where the API answers."
  value       = "https://${var.domain == null ? aws_lb.api.dns_name : var.domain.name}"
}

output "for_nodes" {
  description = "What a pool of GPU machines has to know: where to dial, with which token, and who may reach whom."
  value = {
    url                    = "http://${aws_lb.dial.dns_name}:${local.port}"
    port                   = local.port
    dial_security_group_id = aws_security_group.dial.id
    security_group_id      = aws_security_group.tasks.id
    token_secret_arn       = var.secret_arns["node-token"]
  }
}

output "events_queue_url" {
  description = "Queue of what happens to machines."
  value       = aws_sqs_queue.events.url
}

output "watch" {
  description = "What alarms and dashboards look at."
  value = {
    cluster       = aws_ecs_cluster.this.name
    service       = aws_ecs_service.this.name
    load_balancer = aws_lb.api.arn_suffix
    target_group  = aws_lb_target_group.api.arn_suffix
    log_group     = aws_cloudwatch_log_group.this.name
    queue         = aws_sqs_queue.events.name
    unread_queue  = aws_sqs_queue.unread.name
  }
}
