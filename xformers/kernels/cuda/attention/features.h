// What an instance of the tensor-core kernels can do beside the plain products; each costs registers and time.
#pragma once

namespace xformers::cuda {

enum class Features : int {
  kPlain,    // dense or packed rows in units of 16 bytes, any band
  kScored,   // and a bias in units of 16 bytes, its gradient, and dropout
  kGeneral,  // and any strides, pages, quantised keys
};

}  // namespace xformers::cuda
