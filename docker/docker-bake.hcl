# docker buildx bake -f docker/docker-bake.hcl            all images, amd64 and arm64
# docker buildx bake -f docker/docker-bake.hcl cpu --load one of them, for this machine

variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }
variable "REPOSITORY" { default = "ghcr.io/arcface-torchx/arcface" }
# CANN's image is per chip; pin it by the digest that your registry shows.
variable "NPU_BASE" { default = "quay.io/ascend/cann:9.0.0-910b-ubuntu22.04-py3.11" }

group "default" { targets = ["cpu", "cuda", "npu"] }

target "common" {
  context    = "."
  dockerfile = "docker/Dockerfile"
  platforms  = ["linux/amd64", "linux/arm64"]
  args       = { VERSION = VERSION, REVISION = REVISION }
}

target "cpu" {
  inherits = ["common"]
  tags     = ["${REPOSITORY}:${VERSION}-cpu"]
  args     = { DEVICE = "cpu", TORCH_INDEX = "https://download.pytorch.org/whl/cpu" }
}

target "cuda" {
  inherits = ["common"]
  tags     = ["${REPOSITORY}:${VERSION}-cuda"]
  # torch's default build brings its CUDA libraries; the host needs the driver only.
  args     = { DEVICE = "cuda" }
}

target "npu" {
  inherits = ["common"]
  tags     = ["${REPOSITORY}:${VERSION}-npu"]
  args     = { DEVICE = "npu", BASE = NPU_BASE, TORCH_INDEX = "https://download.pytorch.org/whl/cpu" }
}
