# What a machine runs at its first boot: a few values, and a script that nothing is templated into. It has no secrets.
locals {
  told = {
    FIRSTLIGHT_REGION         = local.region
    FIRSTLIGHT_PACKAGE_URL    = var.node_package.url
    FIRSTLIGHT_PACKAGE_SHA256 = var.node_package.sha256
    FIRSTLIGHT_TOKEN_SECRET   = var.control_plane.token_secret_arn
    FIRSTLIGHT_REGISTRY       = split("/", var.worker_image)[0]
  }

  settings = merge(
    {
      PLATFORM_NODE_CLOUD             = "ec2"
      PLATFORM_NODE_CONTROL_PLANE_URL = var.control_plane.url
      PLATFORM_NODE_IMAGE             = var.worker_image
      PLATFORM_NODE_RUNTIME           = "container"
      PLATFORM_NODE_SNAPSHOTTER       = "firstlight"
      PLATFORM_NODE_STATE_DIR         = "/var/lib/firstlight/node"
      PLATFORM_NODE_PULL_SOCKET       = "/var/lib/firstlight/snapshotter/pull.sock"
      PLATFORM_NODE_LOG_FORMAT        = "json"
      PLATFORM_SNAPSHOTTER_LOG_FORMAT = "json"
    },
    var.settings,
  )

  user_data = { for key, group in local.groups : key => join("\n", concat(
    ["#!/bin/bash"],
    [for name, value in local.told : "export ${name}='${value}'"],
    ["FIRSTLIGHT_SETTINGS=$(cat <<'SETTINGS'"],
    ["PLATFORM_NODE_GROUP='${var.name}-${var.gpu_class}-${key}'"],
    [for name, value in local.settings : "${name}='${value}'"],
    ["SETTINGS", ")"],
    [file("${path.module}/files/first-boot")],
  )) }
}
