// The devices of this machine.
#pragma once

namespace mdcp::cuda {

int device_count();  // devices that this build can use, 0 without a driver

}  // namespace mdcp::cuda
