// llmcli::linear_cross_entropy on CPU tensors: the vocabulary projection in pieces of rows, each of which is
// through with loss and gradient before the next one begins.
//
// A gradient of 16-bit weights is summed over the pieces in float32 and rounded once. Where those sums are
// large, they lie in the memory of the gradient itself, which has room for half of the vocabulary. The logits
// of the other half are computed again afterwards, some columns of all rows at a time: a sixth more products,
// and no sums but those columns'.
#include <cstring>

#include "linear_cross_entropy.h"

#include "product.h"

namespace llmcli {
namespace {

// Fixed cuts, so that no sum's order depends on threads: every product below is one thread's.
constexpr int64_t kColumns = 2048;    // of the vocabulary that one product takes
constexpr int64_t kWidth = 192;       // of the columns of the gradient of x that one product takes
constexpr int64_t kAgain = 512;       // of the vocabulary whose logits are computed again at once,
constexpr int64_t kAgainRows = 1024;  // and their rows

// Elements of the logits of a piece, so that the gradient of the weights, which every piece adds to, is not
// moved too often; fewer where sums are large.
constexpr int64_t kPiece = int64_t{1} << 24, kSmallPiece = int64_t{13} << 20;
constexpr int64_t kLarge = int64_t{1} << 24;  // sums: 64 MiB

int64_t rows_of_piece(int64_t V, int64_t elements) {
  const int64_t rows = elements / V / 64 * 64;
  return rows < 64 ? 64 : rows > 1024 ? 1024 : rows;
}

int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// Rows of float32 sums to T at the beginning of the same memory.
void round_in_place(const cpu::Kernels& kernels, void* data, int64_t rows, int64_t C, int64_t size,
                    cpu::DType dtype) {
  float* const sum = static_cast<float*>(scratch(C * 4 + C * size));
  std::memset(sum + C, 0, static_cast<size_t>(C * size));
  cpu::AccumulateArgs s{};
  s.part = sum + C;
  s.sum = sum;
  s.size = C;
  s.dtype = dtype;
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(sum, static_cast<const char*>(data) + row * C * 4, static_cast<size_t>(C * 4));
    s.y = static_cast<char*>(data) + row * C * size;
    kernels.accumulate(s, 0, 1);
  }
}

// x (N, C), weight (V, C), targets (N) → loss (), and the gradients of x and weight where wanted, else (0).
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& x_, const Tensor& weight_,
                                                        const Tensor& targets_, double scale,
                                                        double smoothing, double cap, bool x_grad,
                                                        bool weight_grad) {
  check_linear_cross_entropy(x_, weight_, targets_);
  const Tensor x = torch::stable::contiguous(x_), weight = torch::stable::contiguous(weight_);
  const Tensor targets = torch::stable::contiguous(targets_);
  const int64_t N = x.size(0), C = x.size(1), V = weight.size(0);
  const ScalarType dtype = x.scalar_type();
  const int64_t size = dtype == ScalarType::Float ? 4 : 2;
  const int64_t* const wanted = static_cast<const int64_t*>(targets.const_data_ptr());
  for (int64_t row = 0; row < N; ++row)
    STD_TORCH_CHECK(wanted[row] < V, kCrossEntropy, ": expected targets below ", V, ", got ", wanted[row]);

  const auto empty = [&](std::initializer_list<int64_t> sizes, ScalarType kind) {
    return empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), kind);
  };
  const Tensor loss = empty({}, ScalarType::Float);
  const Tensor dx = x_grad ? empty({N, C}, dtype) : empty({0}, dtype);
  Tensor dw = weight_grad ? empty({V, C}, dtype) : empty({0}, dtype);
  int64_t rows = rows_of_piece(V, kPiece);
  const bool summed = weight_grad && size == 2 && N > rows, large = summed && V * C >= kLarge;
  if (large) rows = rows_of_piece(V, kSmallPiece);
  const int64_t kept = large ? V / 2 / 64 * 64 : V;  // of the vocabulary, whose gradient the pieces sum
  const int64_t some_columns = summed ? kColumns / 2 : kColumns;  // a product waits for its sum in scratch
  Tensor logits = empty({N < rows ? N : rows, V}, dtype);
  const Tensor apart = summed && !large ? empty({V, C}, ScalarType::Float) : empty({0}, ScalarType::Float);
  float* const sums = static_cast<float*>(large ? dw.mutable_data_ptr() : apart.mutable_data_ptr());
  std::vector<float> of_rows(static_cast<size_t>(large ? 2 * N : 0));
  if (weight_grad && N == 0) torch::stable::zero_(dw);

  const cpu::Kernels& kernels = cpu::active();
  cpu::CrossEntropyArgs a{};
  a.logits = logits.mutable_data_ptr();
  a.size = V;
  a.scale = static_cast<float>(scale);
  a.smoothing = static_cast<float>(smoothing);
  a.cap = static_cast<float>(cap);
  a.dtype = dtype_of(x, kCrossEntropy);
  a.gradient = x_grad || weight_grad;
  std::vector<double> losses(static_cast<size_t>(N));
  const auto part = [&](const void* data, int64_t at, int64_t height, int64_t width, int64_t stride) {
    return Matrix{static_cast<char*>(const_cast<void*>(data)) + at * size, height, width, stride, 1};
  };
  for (int64_t first = 0; first < N; first += rows) {
    const int64_t n = N - first < rows ? N - first : rows;
    const Matrix some = part(x.const_data_ptr(), first * C, n, C, C);
    each(parts(V, kColumns), [&](int64_t item) {
      const int64_t v = item * kColumns, width = V - v < kColumns ? V - v : kColumns;
      product(part(a.logits, v, n, width, V), some,
              part(weight.const_data_ptr(), v * C, width, C, C).turned(), dtype, false);
    });
    a.targets = wanted + first;
    a.losses = losses.data() + first;
    a.sums = large ? of_rows.data() + 2 * first : nullptr;
    parallel(n, static_cast<double>(V) * 0.5,
             [&](int64_t begin, int64_t end) { kernels.cross_entropy(a, begin, end, scratch_row(V)); });
    if (weight_grad)
      each(parts(kept, some_columns), [&](int64_t item) {
        const int64_t v = item * some_columns, width = kept - v < some_columns ? kept - v : some_columns;
        const Matrix left = part(a.logits, v, n, width, V).turned();
        if (!summed)
          return product(part(dw.mutable_data_ptr(), v * C, width, C, C), left, some, dtype, first > 0);
        cpu::AccumulateArgs s{};
        s.part = scratch(width * C * size);
        s.sum = sums + v * C;
        s.y = first + n == N && !large ? static_cast<char*>(dw.mutable_data_ptr()) + v * C * size : nullptr;
        s.size = C;
        s.dtype = a.dtype;
        s.first = first == 0;
        product(part(s.part, 0, width, C, C), left, some, dtype, false);
        kernels.accumulate(s, 0, width);
      });
    if (x_grad)
      each(parts(C, kWidth), [&](int64_t item) {
        const int64_t c = item * kWidth, width = C - c < kWidth ? C - c : kWidth;
        product(part(dx.mutable_data_ptr(), first * C + c, n, width, C), part(a.logits, 0, n, V, V),
                part(weight.const_data_ptr(), c, V, width, C), dtype, false);
      });
  }
  if (large) {
    logits = empty({0}, dtype);
    round_in_place(kernels, dw.mutable_data_ptr(), kept, C, size, a.dtype);
    each(parts(V - kept, kAgain), [&](int64_t item) {
      const int64_t v = kept + item * kAgain, width = V - v < kAgain ? V - v : kAgain;
      char* const room = static_cast<char*>(scratch(width * (C * 4 + kAgainRows * size + C * size)));
      cpu::AccumulateArgs s{};
      s.sum = reinterpret_cast<float*>(room);
      s.size = C;
      s.dtype = a.dtype;
      cpu::CrossEntropyArgs again = a;
      again.logits = room + width * C * 4;
      again.first = v;
      again.width = width;
      void* const product_of_rows = room + width * (C * 4 + kAgainRows * size);
      s.part = product_of_rows;
      for (int64_t first = 0; first < N; first += kAgainRows) {
        const int64_t n = N - first < kAgainRows ? N - first : kAgainRows;
        const Matrix some = part(x.const_data_ptr(), first * C, n, C, C);
        const Matrix block = part(again.logits, 0, n, width, width);
        product(block, some, part(weight.const_data_ptr(), v * C, width, C, C).turned(), dtype, false);
        again.targets = wanted + first;
        again.sums = of_rows.data() + 2 * first;
        kernels.cross_entropy_part(again, 0, n);
        product(part(product_of_rows, 0, width, C, C), block.turned(), some, dtype, false);
        s.first = first == 0;
        s.y = first + n == N ? static_cast<char*>(dw.mutable_data_ptr()) + v * C * size : nullptr;
        kernels.accumulate(s, 0, width);
      }
    });
  }
  double total = 0.0;
  for (const double one : losses) total += one;
  *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(total);
  return {loss, dx, dw};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&llmcli::linear_cross_entropy));
}
