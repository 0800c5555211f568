// What the bindings ask of torch's CUDA half, where torch has none: device -1 is the CPU, its stream is null.
#include <cstdint>

#include "fibers.h"

extern "C" {

int32_t aoti_torch_create_cuda_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
int32_t aoti_torch_delete_cuda_guard(void*) { return 0; }
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

// From now on threads run in falling order and copies arrive at once, or in rising order and at the last
// moment, on a GPU of compute capability `major`.0.
__attribute__((visibility("default"))) void emulation_machine(int reversed, int major) {
  emulation::machine().reversed = reversed != 0;
  emulation::machine().capability = major;
}
// Threads of a block of the last launch.
__attribute__((visibility("default"))) int emulation_threads() { return emulation::machine().threads; }
}
