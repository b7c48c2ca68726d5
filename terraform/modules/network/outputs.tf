output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "cidr" {
  description = "Its addresses."
  value       = aws_vpc.this.cidr_block
}

output "zones" {
  description = "The availability zones in use, in order."
  value       = local.zones
}

output "private_subnet_ids" {
  description = "Where machines and tasks live, in the order of the zones."
  value       = [for zone in local.zones : aws_subnet.private[zone].id]
}

output "public_subnet_ids" {
  description = "Where load balancers that the internet reaches live, in the order of the zones."
  value       = [for zone in local.zones : aws_subnet.public[zone].id]
}
