// Where a CUDA call of the kernels runs. Plain C++.
#pragma once

namespace xformers::cuda {

// Where a call runs: the current device, this stream (a cudaStream_t), and device memory of the size that the
// family's *_workspace asks for, aligned to 256 bytes, free for other use once the stream has passed.
struct Stream {
  void* stream = nullptr;
  void* workspace = nullptr;
};

}  // namespace xformers::cuda
