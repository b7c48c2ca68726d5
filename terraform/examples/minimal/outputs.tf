output "url" {
  description = "Where the API answers."
  value       = module.control_plane.url
}

output "api_key_secret_arn" {
  description = "Secret with the admin's key; `platform login --terraform` reads it."
  value       = module.secrets.arns["api-key"]
}

output "region" {
  description = "AWS region."
  value       = var.region
}

output "image_urls" {
  description = "Where the images are pushed to."
  value       = module.registry.urls
}

output "weights_bucket" {
  description = "Bucket of weights: models are deployed as `s3://<bucket>/<prefix>`."
  value       = module.storage.weights_bucket.name
}

output "group_names" {
  description = "The Auto Scaling groups of GPU machines."
  value       = module.gpu_pool.group_names
}
