# Cross compilation for 64-bit Arm with Debian's g++-aarch64-linux-gnu; programs run under qemu-user (its libraries lie in
# /usr/aarch64-linux-gnu). Highway is headers alone, the same for every processor.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
