output "urls" {
  description = "Where each image is pushed to and pulled from: `control-plane`, `worker`."
  value       = { for name, repository in aws_ecr_repository.this : name => repository.repository_url }
}

output "arns" {
  description = "The repositories' ARNs, for those who pull."
  value       = { for name, repository in aws_ecr_repository.this : name => repository.arn }
}
