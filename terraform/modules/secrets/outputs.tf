output "arns" {
  description = "Their ARNs."
  value       = { for name, secret in aws_secretsmanager_secret.this : name => secret.arn }

  # Who starts with one must find it filled.
  depends_on = [aws_secretsmanager_secret_version.this]
}
