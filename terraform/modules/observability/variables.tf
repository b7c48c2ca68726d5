variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "watch" {
  description = "What the module control_plane gives as `watch`."
  type = object({
    cluster       = string
    service       = string
    load_balancer = string
    target_group  = string
    log_group     = string
    queue         = string
    unread_queue  = string
  })
}

variable "state_metrics" {
  description = "What the module state gives as `metrics`."
  type = object({
    namespace  = string
    dimensions = map(string)
  })
}

variable "group_names" {
  description = "The Auto Scaling groups of all pools."
  type        = list(string)

  validation {
    condition     = length(var.group_names) > 0
    error_message = "Name the groups of at least one pool."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts alarms on their way."
  type        = string
}

variable "emails" {
  description = "Who is told of alarms and of the budget; each has to confirm once."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for it in var.emails : can(regex("^[^@\\s]+@[^@\\s]+$", it))])
    error_message = "An address looks like someone@example.org."
  }
}

variable "monthly_budget_usd" {
  description = "Dollars a month of everything tagged with this deployment at which alarms go out (at 80 and 100 %, and when the forecast passes it); null has no budget."
  type        = number
  default     = null

  validation {
    condition     = var.monthly_budget_usd == null || try(var.monthly_budget_usd > 0, false)
    error_message = "A budget is more than nothing."
  }
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
