variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts the images."
  type        = string
}

variable "keep_images" {
  description = "Images of each repository that are kept; older ones go. Their indexes go with them."
  type        = number
  default     = 20

  validation {
    condition     = var.keep_images >= 2 && var.keep_images <= 1000
    error_message = "Keep at least two images, or a rollback finds none."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes repositories that hold images."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
