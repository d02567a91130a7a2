// A tile of rows in shared memory as the copy engine leaves it. Plain C++.
#pragma once

namespace xformers::cuda::sm90 {

// Panels of 64 dims, each `rows` x 128 bytes; of the last one a part may be zeros.
constexpr int panels_of(int dims) { return (dims + 63) / 64; }
constexpr int tile_bytes(int rows, int dims) { return 128 * rows * panels_of(dims); }

}  // namespace xformers::cuda::sm90
