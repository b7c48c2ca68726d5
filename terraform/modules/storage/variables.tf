variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes buckets that hold something, all versions with them."
  type        = bool
  default     = false
}

variable "result_days" {
  description = "Days after which a job's result is deleted; at least as long as the platform keeps jobs."
  type        = number
  default     = 30

  validation {
    condition     = var.result_days >= 15 && var.result_days <= 3650
    error_message = "Dead letters are kept for 14 days, so results stay for 15 at least."
  }
}

variable "log_days" {
  description = "Days that access logs are kept."
  type        = number
  default     = 90

  validation {
    condition     = var.log_days >= 1 && var.log_days <= 3650
    error_message = "Access logs are kept between a day and ten years."
  }
}

variable "key_deletion_days" {
  description = "Days between `terraform destroy` and the end of the encryption key; AWS allows 7 to 30."
  type        = number
  default     = 7

  validation {
    condition     = var.key_deletion_days >= 7 && var.key_deletion_days <= 30
    error_message = "AWS allows 7 to 30 days."
  }
}

variable "node_package" {
  description = "Path of the archive that `scripts/node-package` made: the code that GPU machines run."
  type        = string

  validation {
    condition     = endswith(var.node_package, ".tar.gz")
    error_message = "The node package is a .tar.gz that scripts/node-package made."
  }
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
