// The instructions of csrc/cuda/ptx_sm90.h on a CPU. Copies of boxes and products happen at once in one order
// of threads, in the other as late as can be: boxes when no thread can go on, products when they are waited
// for.
#pragma once
#include <emulated_ptx.h>

namespace llmcli::cuda {

// An address as instructions know it: bytes from the beginning of shared memory.
inline uint32_t shared_address(const void* p) {
  const emulation::Machine& m = emulation::machine();
  const auto* const at = static_cast<const unsigned char*>(p);
  if (at < m.shared || at >= m.shared_end) emulation::fail("shared_address: expected shared memory");
  return static_cast<uint32_t>(at - m.shared_begin);
}
inline unsigned char* at_shared_address(const char* what, uint32_t address, int bytes) {
  const emulation::Machine& m = emulation::machine();
  unsigned char* const at = m.shared_begin + address;
  if (at < m.shared || at + bytes > m.shared_end)
    emulation::fail(std::string(what) + ": an address beyond shared memory");
  return at;
}
// The 16 bytes of an address in rows of 128 bytes: their number, exclusive or the row's modulo 8.
inline uint32_t swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

inline void whole_warpgroup(const char* what) {
  char none;
  emulation::together<emulation::kWarpgroup>(what, &none, [](char**) {});
}
template <int kRegisters>
void claim_registers() {
  whole_warpgroup("claim_registers");
}
template <int kRegisters>
void release_registers() {
  whole_warpgroup("release_registers");
}

inline bool be_counted_emulated(int barrier, int threads) {
  int& counted = emulation::machine().counted[barrier];
  if (++counted < threads) return false;
  counted = 0;
  emulation::wake(&counted);
  return true;
}
inline void be_counted(int barrier, int threads) { be_counted_emulated(barrier, threads); }
inline void meet(int barrier, int threads) {
  if (!be_counted_emulated(barrier, threads))
    emulation::wait_for(&emulation::machine().counted[barrier], "a barrier of some threads");
}
inline void writes_before_products() {}
inline void barriers_begin() {}

struct Barrier {
  int32_t bytes;
  uint32_t arrivals : 12, pending : 12, phase : 1, begun : 7;

  void begin(int n) { bytes = 0, arrivals = pending = static_cast<uint32_t>(n), phase = 0, begun = 0x2a; }
  void check() const {
    if (begun != 0x2a) emulation::fail("a barrier is used before it has begun");
  }
  void arrive() { arrive_and_expect(0); }
  void arrive_and_expect(int expected) {
    check();
    if (pending == 0) emulation::fail("more threads arrive at a barrier than it expects");
    bytes += expected, --pending;
    end_phase();
  }
  void come(int arrived) {
    bytes -= arrived;
    end_phase();
  }
  void end_phase() {
    if (pending > 0 || bytes != 0) return;
    phase ^= 1, pending = arrivals;
    emulation::wake(this);
  }
  void wait(int parity) {
    check();
    while (phase == static_cast<uint32_t>(parity)) emulation::wait_for(this, "a barrier in shared memory");
  }
};

struct TensorMap {
  const uint16_t* x;
  int64_t sizes[4], strides[3];
  int rows;
};
inline cudaError_t describe_tensor(const void* x, const int64_t (&sizes)[4], const int64_t (&strides)[3],
                                   int rows, TensorMap* map) {
  map->x = static_cast<const uint16_t*>(x), map->rows = rows;
  if (reinterpret_cast<uintptr_t>(x) % 16 != 0 || rows > 256) return cudaErrorInvalidValue;
  for (int i = 0; i < 4; ++i) {
    map->sizes[i] = sizes[i];
    if (sizes[i] < 1 || sizes[i] > int64_t{1} << 32) return cudaErrorInvalidValue;
  }
  for (int i = 0; i < 3; ++i) {
    map->strides[i] = strides[i];
    if (strides[i] <= 0 || strides[i] * 2 % 16 != 0 || strides[i] * 2 >= int64_t{1} << 40)
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
inline void copy_box(void* to, const TensorMap& map, int d0, int d1, int d2, int d3, Barrier* arrives) {
  const uint32_t start = shared_address(to);
  if (start % 128 != 0) emulation::fail("copy_box: expected a destination on 128 bytes");
  at_shared_address("copy_box", start, map.rows * 128);
  const auto arrive = [=] {
    const TensorMap& m = map;
    for (int row = 0; row < m.rows; ++row)
      for (int column = 0; column < 64; ++column) {
        const bool there =
            d0 + column < m.sizes[0] && d1 + row < m.sizes[1] && d2 < m.sizes[2] && d3 < m.sizes[3];
        const int64_t from = d0 + column + (d1 + row) * m.strides[0] + d2 * m.strides[1] + d3 * m.strides[2];
        const uint32_t address = swizzled(start + static_cast<uint32_t>(row * 128 + column * 2));
        *reinterpret_cast<uint16_t*>(emulation::machine().shared_begin + address) = there ? m.x[from] : 0;
      }
    arrives->come(m.rows * 128);
  };
  emulation::Machine& machine = emulation::machine();
  if (machine.reversed) {
    arrive();
  } else {
    machine.arriving.push_back(arrive);
  }
}

inline emulation::Products& products() {
  return emulation::machine().products[emulation::machine().current / emulation::kWarpgroup];
}
inline void products_begin() {
  char none;
  emulation::together<emulation::kWarpgroup>("products_begin", &none,
                                             [](char**) { products().fenced = true; });
}
inline void products_commit() {
  char none;
  emulation::together<emulation::kWarpgroup>("products_commit", &none,
                                             [](char**) { products().groups.emplace_back(); });
}
template <int kGroups>
void products_wait() {
  char none;
  emulation::together<emulation::kWarpgroup>("products_wait", &none, [](char**) {
    auto& groups = products().groups;
    for (; groups.size() > kGroups + 1; groups.erase(groups.begin()))
      for (const auto& product : groups[0]) product();
    products().fenced = false;
  });
}
template <class T>
void settle(T&) {}

// A matrix in shared memory as the PTX ISA's section on its descriptor has it, swizzled by 128 bytes: element
// (row, k), 16 of k, of rows that lie by rows, or with kColumns by columns, 64 rows side by side.
template <bool kColumns, class T>
float element(uint64_t descriptor, int row, int k) {
  constexpr uint64_t kUsed = 0xc0003fff3fff3fffull;
  if (descriptor >> 62 != 1 || (descriptor & ~kUsed) != 0)
    emulation::fail("a matrix's descriptor: expected one that is swizzled by 128 bytes");
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4,
                 leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4,
                 stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const auto r = static_cast<uint32_t>(row), c = static_cast<uint32_t>(k);
  const uint32_t address = kColumns ? start + r / 64 * leading + r % 64 * 2 + c / 8 * stride + c % 8 * 128
                                    : start + r / 8 * stride + r % 8 * 128 + c * 2;
  T x;
  std::memcpy(&x, at_shared_address("a matrix's descriptor", swizzled(address), 2), 2);
  return to_float(x);
}

// Thread 32 w + l has rows 16 w + l / 4 + 8 i and columns 8 n + l % 4 * 2 + j in c[4 n + 2 i + j].
template <int kN, class A, class B>
void multiply_emulated(float* const (&c)[emulation::kWarpgroup], bool add, const A& a_at, const B& b_at) {
  float a[64][16], b[kN][16];
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < 64; ++row) a[row][k] = a_at(row, k);
    for (int row = 0; row < kN; ++row) b[row][k] = b_at(row, k);
  }
  for (int t = 0; t < emulation::kWarpgroup; ++t)
    for (int i = 0; i < kN / 2; ++i) {
      const int row = t / 32 * 16 + row_of_c(t % 32, i % 4), column = i / 4 * 8 + column_of_c(t % 32, i % 4);
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
      c[t][i] = add ? c[t][i] + sum : sum;
    }
}
template <class Operands, class Perform>
void begin_product(const char* what, Operands* mine, const Perform& perform) {
  emulation::together<emulation::kWarpgroup>(what, mine, [&](Operands** all) {
    if (!products().fenced) emulation::fail(std::string(what) + ": expected products_begin() before");
    std::vector<Operands> lanes;
    for (int t = 0; t < emulation::kWarpgroup; ++t) {
      lanes.push_back(*all[t]);
      if (lanes[t].b != lanes[0].b) emulation::fail(std::string(what) + ": lanes differ in their matrices");
    }
    const auto product = [lanes, perform] {
      float* c[emulation::kWarpgroup];
      for (int t = 0; t < emulation::kWarpgroup; ++t) c[t] = lanes[t].c;
      perform(lanes, c);
    };
    products().groups.back().push_back(emulation::machine().reversed ? std::function<void()>([] {})
                                                                     : product);
    if (emulation::machine().reversed) product();
  });
}

template <class T>
void multiply_rows(uint64_t a, uint64_t b, bool add, float (&c)[64]) {
  struct Operands {
    uint64_t a, b;
    bool add;
    float* c;
  } mine{a, b, add, c};
  begin_product("multiply_rows", &mine, [](const auto& lanes, float* const(&c)[emulation::kWarpgroup]) {
    const auto a_at = [&](int row, int k) { return element<false, T>(lanes[row / 16 * 32].a, row, k); };
    const auto b_at = [&](int row, int k) { return element<false, T>(lanes[0].b, row, k); };
    multiply_emulated<128>(c, lanes[0].add, a_at, b_at);
  });
}
template <class T>
void multiply_columns(const uint32_t (&a)[4], uint64_t b, bool add, float (&c)[32]) {
  struct Operands {
    const uint32_t* a;
    uint64_t b;
    bool add;
    float* c;
  } mine{a, b, add, c};
  begin_product("multiply_columns", &mine, [](const auto& lanes, float* const(&c)[emulation::kWarpgroup]) {
    float a[64][16];
    for (int t = 0; t < emulation::kWarpgroup; ++t)
      for (int i = 0; i < 8; ++i)
        a[t / 32 * 16 + row_of_a(t % 32, i)][column_of_a(t % 32, i)] = half_of<T>(lanes[t].a, i);
    const auto a_at = [&](int row, int k) { return a[row][k]; };
    const auto b_at = [&](int row, int k) { return element<true, T>(lanes[0].b, row, k); };
    multiply_emulated<64>(c, lanes[0].add, a_at, b_at);
  });
}

}  // namespace llmcli::cuda
