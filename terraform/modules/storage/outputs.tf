output "kms_key_arn" {
  description = "The deployment's key."
  value       = aws_kms_key.this.arn
}

output "weights_bucket" {
  description = "Bucket of weights: models are deployed as `s3://<name>/<prefix>`."
  value       = { name = aws_s3_bucket.this["weights"].bucket, arn = aws_s3_bucket.this["weights"].arn }
}

output "results_bucket" {
  description = "Bucket of large results of jobs."
  value       = { name = aws_s3_bucket.this["results"].bucket, arn = aws_s3_bucket.this["results"].arn }
}

output "logs_bucket" {
  description = "Bucket of access logs."
  value       = aws_s3_bucket.this["logs"].bucket

  # A load balancer that is made before the policy is refused.
  depends_on = [aws_s3_bucket_policy.this]
}

output "node_package" {
  description = "Where the code of GPU machines is, and its SHA-256."
  value = {
    url    = "s3://${aws_s3_object.node_package.bucket}/${aws_s3_object.node_package.key}"
    sha256 = filesha256(var.node_package)
  }
}
