variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string
  default     = "firstlight"
}

variable "allowed_cidrs" {
  description = "Who may call the API, as blocks of IPv4 addresses, such as your own: 203.0.113.7/32."
  type        = set(string)
}

variable "domain" {
  description = "The API's address, and the hosted zone of Route 53 it is made in."
  type = object({
    name    = string
    zone_id = string
  })
}

variable "cidr" {
  description = "Addresses of the VPC, between /16 and /18."
  type        = string
  default     = "10.60.0.0/16"
}

variable "pools" {
  description = "Classes of GPU; for each the instance types, how many at most on demand and as spot, and dollars an hour (us-east-1, 2026)."
  type = map(map(object({
    on_demand           = optional(number, 0)
    spot                = optional(number, 0)
    price_per_hour      = optional(number)
    spot_price_per_hour = optional(number)
  })))
  default = {
    l4 = {
      "g6.xlarge"  = { on_demand = 4, price_per_hour = 0.8048, spot = 8, spot_price_per_hour = 0.33 }
      "g6.2xlarge" = { on_demand = 4, price_per_hour = 0.9776 }
    }
    l40s = {
      "g6e.xlarge" = { on_demand = 2, price_per_hour = 1.861 }
    }
  }
}

variable "emails" {
  description = "Who is told of alarms and of the budget."
  type        = set(string)
  default     = []
}

variable "monthly_budget_usd" {
  description = "Dollars a month at which alarms go out."
  type        = number
  default     = 1000
}

variable "keep_data" {
  description = "Whether `terraform destroy` refuses to delete weights, results, images and load balancers; set it to false and apply before you destroy."
  type        = bool
  default     = true
}

variable "image_version" {
  description = "Tag under which the images of the control plane and of workers are pushed."
  type        = string
  default     = "0.1.0"
}

variable "node_package" {
  description = "Path of the archive that `scripts/node-package` made."
  type        = string
  default     = "../../../build/firstlight-node.tar.gz"
}
