variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "engine" {
  description = "`memorydb` writes to disks of several zones before it answers, as the promise of jobs needs; `elasticache` has its copy in another zone a moment later, and a failover can lose accepted jobs."
  type        = string
  default     = "memorydb"

  validation {
    condition     = contains(["memorydb", "elasticache"], var.engine)
    error_message = "engine is memorydb or elasticache."
  }
}

variable "node_type" {
  description = "Size of the store's machine; a gigabyte is plenty for a hundred models."
  type        = string
  default     = "db.t4g.small"

  validation {
    condition     = startswith(var.node_type, var.engine == "memorydb" ? "db." : "cache.")
    error_message = "Types of MemoryDB begin with db., those of ElastiCache with cache.."
  }
}

variable "vpc_id" {
  description = "The VPC it lives in."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, in two zones at least."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "The store needs subnets in two zones at least."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts what it keeps, its snapshots and its address."
  type        = string
}

variable "snapshot_days" {
  description = "Days that daily snapshots are kept; 0 takes none. They go with the store."
  type        = number
  default     = 7

  validation {
    condition     = var.snapshot_days >= 0 && var.snapshot_days <= 35
    error_message = "AWS keeps snapshots for 0 to 35 days."
  }
}

variable "secret_recovery_days" {
  description = "Days in which a destroyed secret can be had back, 7 to 30; with 0 its name is free at once."
  type        = number
  default     = 0

  validation {
    condition     = var.secret_recovery_days == 0 || (var.secret_recovery_days >= 7 && var.secret_recovery_days <= 30)
    error_message = "AWS allows 0, or 7 to 30 days."
  }
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
