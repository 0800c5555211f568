// llmcli::linear_cross_entropy on CPU tensors: the vocabulary projection in pieces of rows, each of which is
// through with loss and gradient before the next one begins.
#include "linear_cross_entropy.h"

#include "product.h"

namespace llmcli {
namespace {

// Fixed cuts, so that no sum's order depends on threads: every product below is one thread's.
constexpr int64_t kColumns = 2048;  // of the vocabulary that one product takes
constexpr int64_t kWidth = 192;     // of the columns of the gradient of x that one product takes

// Rows of one piece: their logits take some 64 MiB in float32, so that the gradient of the weights, which
// every piece adds to, is not moved too often.
int64_t rows_of_piece(int64_t V) {
  const int64_t rows = (int64_t{1} << 24) / V / 64 * 64;
  return rows < 64 ? 64 : rows > 1024 ? 1024 : rows;
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
  const int64_t rows = rows_of_piece(V), most = N < rows ? N : rows;
  const Tensor logits = empty({most, V}, dtype);
  // Of 16-bit gradients, which are rounded once, after the last piece.
  const bool summed = weight_grad && size == 2 && N > rows;
  const Tensor sums = summed ? empty({V, C}, ScalarType::Float) : empty({0}, ScalarType::Float);
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
  const int64_t columns = (V + kColumns - 1) / kColumns;
  for (int64_t first = 0; first < N; first += rows) {
    const int64_t n = N - first < rows ? N - first : rows;
    const auto part = [&](const void* data, int64_t at, int64_t height, int64_t width, int64_t stride) {
      return Matrix{static_cast<char*>(const_cast<void*>(data)) + at * size, height, width, stride, 1};
    };
    const Matrix some = part(x.const_data_ptr(), first * C, n, C, C);
    each(columns, [&](int64_t item) {
      const int64_t v = item * kColumns, width = V - v < kColumns ? V - v : kColumns;
      product(part(a.logits, v, n, width, V), some,
              part(weight.const_data_ptr(), v * C, width, C, C).turned(), dtype, false);
    });
    a.targets = wanted + first;
    a.losses = losses.data() + first;
    parallel(n, static_cast<double>(V) * 0.5,
             [&](int64_t begin, int64_t end) { kernels.cross_entropy(a, begin, end, scratch_row(V)); });
    if (weight_grad)
      each(columns, [&](int64_t item) {
        const int64_t v = item * kColumns, width = V - v < kColumns ? V - v : kColumns;
        const Matrix left = part(a.logits, v, n, width, V).turned();
        if (!summed)
          return product(part(dw.mutable_data_ptr(), v * C, width, C, C), left, some, dtype, first > 0);
        cpu::AccumulateArgs s{};
        s.part = scratch(width * C * size);
        s.sum = static_cast<float*>(sums.mutable_data_ptr()) + v * C;
        s.y = first + n == N ? static_cast<char*>(dw.mutable_data_ptr()) + v * C * size : nullptr;
        s.size = C;
        s.dtype = a.dtype;
        s.first = first == 0;
        product(part(s.part, 0, width, C, C), left, some, dtype, false);
        kernels.accumulate(s, 0, width);
      });
    if (x_grad)
      each((C + kWidth - 1) / kWidth, [&](int64_t item) {
        const int64_t c = item * kWidth, width = C - c < kWidth ? C - c : kWidth;
        product(part(dx.mutable_data_ptr(), first * C + c, n, width, C), part(a.logits, 0, n, V, V),
                part(weight.const_data_ptr(), c, V, width, C), dtype, false);
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
