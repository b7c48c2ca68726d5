variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "cidr" {
  description = "Addresses of the VPC, between /16 and /18."
  type        = string
  default     = "10.60.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && can(regex("/1[6-8]$", var.cidr))
    error_message = "The VPC needs a block of IPv4 addresses between /16 and /18, such as 10.60.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones to use, by name; empty takes the first two or three of the region (`zone_count`)."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.zones) != 1 && length(var.zones) <= 6
    error_message = "A load balancer needs at least two zones, and there is room for six."
  }
}

variable "zone_count" {
  description = "How many zones to take where `zones` is empty."
  type        = number
  default     = 2

  validation {
    condition     = contains([2, 3], var.zone_count)
    error_message = "Take two or three zones."
  }
}

variable "nat" {
  description = "Way out of the private subnets: `none` (models come from S3 only), `single` gateway, or one `per_zone`."
  type        = string
  default     = "single"

  validation {
    condition     = contains(["none", "single", "per_zone"], var.nat)
    error_message = "nat is none, single or per_zone."
  }
}

variable "endpoints" {
  description = "AWS services that are reached without leaving the VPC, each an interface endpoint in every zone; S3 always is, for nothing."
  type        = set(string)
  default     = ["autoscaling", "ecr.api", "ecr.dkr", "logs", "secretsmanager", "sqs"]

  validation {
    condition     = alltrue([for it in var.endpoints : can(regex("^[a-z0-9.-]+$", it))])
    error_message = "An endpoint is a service's short name, such as ecr.api."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts the flow logs."
  type        = string
}

variable "flow_log_days" {
  description = "Days that flow logs are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([7, 14, 30, 60, 90, 180, 365], var.flow_log_days)
    error_message = "CloudWatch keeps logs for 7, 14, 30, 60, 90, 180 or 365 days."
  }
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
