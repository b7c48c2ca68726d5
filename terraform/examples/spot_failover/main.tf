# Spot machines first, in three zones, and machines on demand of the next type and of the same where there are none to be
# had: the control plane goes through the groups from the cheapest to the dearest.
module "storage" {
  source = "../../modules/storage"

  name          = var.name
  node_package  = var.node_package
  force_destroy = true
}

module "network" {
  source = "../../modules/network"

  name        = var.name
  zone_count  = 3
  kms_key_arn = module.storage.kms_key_arn
}

module "registry" {
  source = "../../modules/registry"

  name          = var.name
  kms_key_arn   = module.storage.kms_key_arn
  force_destroy = true
}

module "state" {
  source = "../../modules/state"

  name          = var.name
  vpc_id        = module.network.vpc_id
  subnet_ids    = module.network.private_subnet_ids
  kms_key_arn   = module.storage.kms_key_arn
  snapshot_days = 0
}

module "secrets" {
  source = "../../modules/secrets"

  name        = var.name
  kms_key_arn = module.storage.kms_key_arn

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
  certificate_arn      = var.certificate_arn
  image                = "${module.registry.urls["control-plane"]}:${var.image_version}"
  image_repository_arn = module.registry.arns["control-plane"]
  tasks                = 1
  state                = module.state.for_control_plane
  secret_arns          = module.secrets.arns
  results_bucket       = module.storage.results_bucket
  weights_bucket_arn   = module.storage.weights_bucket.arn
  logs_bucket          = module.storage.logs_bucket
  kms_key_arn          = module.storage.kms_key_arn
}

module "gpu_pool" {
  source = "../../modules/gpu_pool"

  name                  = var.name
  gpu_class             = "l4"
  vpc_id                = module.network.vpc_id
  subnet_ids            = module.network.private_subnet_ids
  control_plane         = module.control_plane.for_nodes
  worker_image          = "${module.registry.urls["worker"]}:${var.image_version}"
  worker_repository_arn = module.registry.arns["worker"]
  node_package          = module.storage.node_package
  weights_bucket_arn    = module.storage.weights_bucket.arn
  kms_key_arn           = module.storage.kms_key_arn

  # Dollars an hour in us-east-1, 2026; spot prices are what was usual, and only order the groups.
  machines = {
    "g6.xlarge"   = { spot = 8, spot_price_per_hour = 0.33, on_demand = 4, price_per_hour = 0.8048 }
    "g6.2xlarge"  = { spot = 8, spot_price_per_hour = 0.40, on_demand = 4, price_per_hour = 0.9776 }
    "gr6.4xlarge" = { spot = 4, spot_price_per_hour = 0.65 }
  }
}
