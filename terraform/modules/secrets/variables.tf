variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "secrets" {
  description = "What is drawn, with what each is for; stored as `<name>/<key>`."
  type        = map(string)

  validation {
    condition     = alltrue([for it in keys(var.secrets) : can(regex("^[a-z][a-z0-9-]*$", it))])
    error_message = "A secret's name has lower-case letters, digits and hyphens."
  }
}

variable "generation" {
  description = "Raise it to draw new ones."
  type        = number
  default     = 1

  validation {
    condition     = var.generation >= 1 && floor(var.generation) == var.generation
    error_message = "A whole number from 1 on."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts them."
  type        = string
}

variable "recovery_days" {
  description = "Days in which a destroyed secret can be had back, 7 to 30; with 0 its name is free at once."
  type        = number
  default     = 0

  validation {
    condition     = var.recovery_days == 0 || (var.recovery_days >= 7 && var.recovery_days <= 30)
    error_message = "AWS allows 0, or 7 to 30 days."
  }
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
