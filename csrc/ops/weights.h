// Memory for packed weights, which every token reads from end to end.
#pragma once
#include <cstdlib>
#include <memory>
#include <mutex>

#include "rows.h"

namespace llmcli {

// An uninitialised CPU tensor of one dimension. Weights lie one after the other in chunks of whole huge
// pages, across which the hardware's prefetcher does not stop; a chunk is freed with the last tensor in it.
inline Tensor empty_weights(int64_t count, ScalarType dtype) {
  const int64_t sizes[] = {count}, strides[] = {1};
  const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes, 1);
#if defined(__linux__)
  constexpr size_t kHuge = size_t{1} << 21, kChunk = 32 * kHuge, kLine = 64;
  static std::mutex mutex;
  static std::shared_ptr<char> chunk;
  static size_t used = 0, room = 0;
  const size_t width = dtype == ScalarType::Float                               ? 4
                       : dtype == ScalarType::Byte || dtype == ScalarType::Char ? 1
                                                                                : 2;
  const size_t bytes = (static_cast<size_t>(count) * width + kLine - 1) / kLine * kLine;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!chunk || bytes > room - used) {
    const size_t size = bytes > kChunk ? (bytes + kHuge - 1) / kHuge * kHuge : kChunk;
    char* const memory = static_cast<char*>(std::aligned_alloc(kHuge, size));
    if (memory == nullptr) return empty_cpu(shape, dtype);  // torch tells what was asked for
    madvise(memory, size, MADV_HUGEPAGE);                   // a hint: failing changes nothing
    chunk = std::shared_ptr<char>(memory, std::free);
    used = 0, room = size;
  }
  char* const at = chunk.get() + used;
  used += bytes;
  return torch::stable::from_blob(at, shape, torch::headeronly::IntHeaderOnlyArrayRef(strides, 1),
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
                                  [owner = chunk](void*) {});
#else
  return empty_cpu(shape, dtype);
#endif
}

}  // namespace llmcli
