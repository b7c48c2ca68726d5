# One page: requests, who leads, machines of each group with those that are stopped, the store, events.
locals {
  region = data.aws_region.here.name

  graphs = [
    {
      title   = "Requests and errors"
      metrics = [for name in ["RequestCount", "HTTPCode_Target_4XX_Count", "HTTPCode_Target_5XX_Count", "HTTPCode_ELB_5XX_Count"] : ["AWS/ApplicationELB", name, "LoadBalancer", var.watch.load_balancer]]
      stat    = "Sum"
    },
    {
      title   = "Seconds to the first byte"
      metrics = [["AWS/ApplicationELB", "TargetResponseTime", "LoadBalancer", var.watch.load_balancer]]
      stat    = "p95"
    },
    {
      title   = "Machines that run"
      metrics = [for name in var.group_names : ["AWS/AutoScaling", "GroupInServiceInstances", "AutoScalingGroupName", name]]
      stat    = "Maximum"
    },
    {
      title   = "Machines that are stopped for later"
      metrics = [for name in var.group_names : ["AWS/AutoScaling", "WarmPoolTotalCapacity", "AutoScalingGroupName", name]]
      stat    = "Maximum"
    },
    {
      title   = "Control plane"
      metrics = [for name in ["CPUUtilization", "MemoryUtilization"] : ["AWS/ECS", name, "ClusterName", var.watch.cluster, "ServiceName", var.watch.service]]
      stat    = "Maximum"
    },
    {
      title   = "Store"
      metrics = [for name in ["DatabaseMemoryUsagePercentage", "EngineCPUUtilization"] : concat([var.state_metrics.namespace, name], flatten([for key, value in var.state_metrics.dimensions : [key, value]]))]
      stat    = "Maximum"
    },
    {
      title   = "Events of machines"
      metrics = [for name in [var.watch.queue, var.watch.unread_queue] : ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", name]]
      stat    = "Maximum"
    },
    {
      title   = "Errors in the log"
      metrics = [["Firstlight/${var.name}", "Errors"]]
      stat    = "Sum"
    },
  ]
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name

  dashboard_body = jsonencode({
    widgets = [for index, graph in local.graphs : {
      type   = "metric"
      x      = 12 * (index % 2)
      y      = 6 * floor(index / 2)
      width  = 12
      height = 6
      properties = {
        title   = graph.title
        region  = local.region
        view    = "timeSeries"
        period  = 60
        stat    = graph.stat
        metrics = graph.metrics
      }
    }]
  })
}
