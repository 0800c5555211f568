// A cache of keys and values as bindings take it: (..., B, G, blocks, bytes) of bytes, see attention_cache.h.
#pragma once
#include <algorithm>
#include <vector>

#include "binding.h"

namespace llmcli {

// Describes one layer, whose batch is dimension `dim`, from a's B, T, G, D; lengths become those after the T
// new positions, and S the longest of them.
inline void describe_cache(cpu::AttentionArgs& a, const Tensor& cache, int64_t dim, int64_t type,
                           std::vector<int64_t>& lengths, const char* name) {
  STD_TORCH_CHECK(type >= 0 && type <= static_cast<int64_t>(cpu::CacheType::i8), name,
                  ": unknown type of a cache");
  a.cache_type = static_cast<cpu::CacheType>(type);
  STD_TORCH_CHECK(cache.scalar_type() == ScalarType::Byte && cache.size(dim + 1) == a.G &&
                      cache.size(dim + 3) == cpu::cache_bytes(a.cache_type, a.D) &&
                      cache.stride(dim + 3) == 1 && cache.stride(dim + 2) == cache.size(dim + 3),
                  name, ": expected a cache of ", a.G, " heads with blocks of ",
                  cpu::cache_bytes(a.cache_type, a.D), " contiguous bytes");
  STD_TORCH_CHECK(cache.size(dim) == a.B && static_cast<int64_t>(lengths.size()) == a.B, name,
                  ": cache or lengths differ from x in batch");
  const int64_t capacity = cache.size(dim + 2) * cpu::kAttentionBlock;
  a.S = 0;
  for (int64_t& n : lengths) {
    STD_TORCH_CHECK(n >= 0 && n + a.T <= capacity, name, ": the cache holds ", capacity, " positions; ",
                    n + a.T, " are needed");
    n += a.T;
    a.S = std::max(a.S, n);
  }
  a.cache = static_cast<char*>(cache.mutable_data_ptr());
  a.cache_b = cache.stride(dim), a.cache_g = cache.stride(dim + 1);
}

}  // namespace llmcli
