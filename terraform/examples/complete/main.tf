# Everything: a domain of one's own, three zones, a control plane that takes over from another, several classes of GPU, alarms, a
# budget, and data that `terraform destroy` does not delete unless it is told to.
module "storage" {
  source = "../../modules/storage"

  name          = var.name
  node_package  = var.node_package
  force_destroy = !var.keep_data
}

module "network" {
  source = "../../modules/network"

  name        = var.name
  zone_count  = 3
  cidr        = var.cidr
  nat         = "per_zone"
  kms_key_arn = module.storage.kms_key_arn
}

module "registry" {
  source = "../../modules/registry"

  name          = var.name
  kms_key_arn   = module.storage.kms_key_arn
  force_destroy = !var.keep_data
}

module "state" {
  source = "../../modules/state"

  name        = var.name
  vpc_id      = module.network.vpc_id
  subnet_ids  = module.network.private_subnet_ids
  kms_key_arn = module.storage.kms_key_arn

  secret_recovery_days = var.keep_data ? 7 : 0
}

module "secrets" {
  source = "../../modules/secrets"

  name          = var.name
  kms_key_arn   = module.storage.kms_key_arn
  recovery_days = var.keep_data ? 7 : 0

  secrets = {
    api-key    = "The admin's key (PLATFORM_API_KEY)"
    node-token = "What node agents show (PLATFORM_NODE_TOKEN)"
  }
}

module "control_plane" {
  source = "../../modules/control_plane"

  name                 = var.name
  vpc_id               = module.network.vpc_id
  private_subnet_ids   = module.network.private_subnet_ids
  public_subnet_ids    = module.network.public_subnet_ids
  allowed_cidrs        = var.allowed_cidrs
  domain               = var.domain
  image                = "${module.registry.urls["control-plane"]}:${var.image_version}"
  image_repository_arn = module.registry.arns["control-plane"]
  tasks                = 2
  deletion_protection  = var.keep_data
  state                = module.state.for_control_plane
  secret_arns          = module.secrets.arns
  results_bucket       = module.storage.results_bucket
  weights_bucket_arn   = module.storage.weights_bucket.arn
  logs_bucket          = module.storage.logs_bucket
  kms_key_arn          = module.storage.kms_key_arn
}

module "gpu_pool" {
  source   = "../../modules/gpu_pool"
  for_each = var.pools

  name                  = var.name
  gpu_class             = each.key
  machines              = each.value
  vpc_id                = module.network.vpc_id
  subnet_ids            = module.network.private_subnet_ids
  control_plane         = module.control_plane.for_nodes
  worker_image          = "${module.registry.urls["worker"]}:${var.image_version}"
  worker_repository_arn = module.registry.arns["worker"]
  node_package          = module.storage.node_package
  weights_bucket_arn    = module.storage.weights_bucket.arn
  kms_key_arn           = module.storage.kms_key_arn
}

module "observability" {
  source = "../../modules/observability"

  name               = var.name
  watch              = module.control_plane.watch
  state_metrics      = module.state.metrics
  group_names        = flatten([for pool in module.gpu_pool : values(pool.group_names)])
  kms_key_arn        = module.storage.kms_key_arn
  emails             = var.emails
  monthly_budget_usd = var.monthly_budget_usd
}
