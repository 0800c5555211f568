// llmcli::linear_cross_entropy on CUDA tensors: the vocabulary projection in pieces of rows, each of which is
// through with loss and gradient before the next one begins. torch multiplies matrices.
#include "linear_cross_entropy.h"

#include <array>

#include "cuda.h"

namespace llmcli {
namespace {

// Rows of one piece: their logits take some 256 MiB in 16 bits, enough for products to run at full speed.
int64_t rows_of_piece(int64_t V) {
  const int64_t rows = (int64_t{1} << 27) / V / 64 * 64;
  return rows < 64 ? 64 : rows > 8192 ? 8192 : rows;
}

// c = a b.
void product(const Tensor& c, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(c)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // c again
}

// Waits for the device: an index outside of the logits must not be read.
void check_targets(const Tensor& targets, int64_t V) {
  if (targets.numel() == 0) return;
  std::array<StableIValue, 1> stack{torch::stable::detail::from(targets)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::max", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor highest = torch::stable::detail::to<Tensor>(stack[0]);
  int64_t value = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(highest.get(), &value));
  STD_TORCH_CHECK(value < V, kCrossEntropy, ": expected targets below ", V, ", got ", value);
}

// x (N, C), weight (V, C), targets (N) → loss (), and the gradients of x and weight where wanted, else (0).
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& x_, const Tensor& weight_,
                                                        const Tensor& targets_, double scale,
                                                        double smoothing, double cap, bool x_grad,
                                                        bool weight_grad) {
  check_linear_cross_entropy(x_, weight_, targets_);
  Tensor x = torch::stable::contiguous(x_);
  const Tensor weight = torch::stable::contiguous(weight_), targets = torch::stable::contiguous(targets_);
  const int64_t N = x.size(0), C = x.size(1), V = weight.size(0);
  check_targets(targets, V);
  using Sizes = std::vector<int64_t>;
  const Tensor loss = torch::stable::new_empty(x, Sizes{}, ScalarType::Float);
  Tensor dx = torch::stable::new_empty(x, x_grad ? Sizes{N, C} : Sizes{0});
  Tensor dw = torch::stable::new_empty(x, weight_grad ? Sizes{V, C} : Sizes{0});
  const int64_t rows = rows_of_piece(V), most = N < rows ? N : rows;
  Tensor logits = torch::stable::new_empty(x, Sizes{most, V});
  // Parts of the weights' gradient are summed in float32 and rounded once, after the last piece.
  const bool summed = weight_grad && N > rows;
  const Tensor part = torch::stable::new_empty(x, summed ? Sizes{V, C} : Sizes{0});
  const Tensor sums = torch::stable::new_empty(x, summed ? Sizes{V, C} : Sizes{0}, ScalarType::Float);
  if (weight_grad && N == 0) torch::stable::zero_(dw);
  const Tensor losses = torch::stable::new_empty(x, Sizes{N}, ScalarType::Double);
  double* const each = static_cast<double*>(losses.mutable_data_ptr());

  cpu::CrossEntropyArgs a{};
  a.logits = logits.mutable_data_ptr();
  a.size = V;
  a.scale = static_cast<float>(scale);
  a.smoothing = static_cast<float>(smoothing);
  a.cap = static_cast<float>(cap);
  a.dtype = dtype_of(x, kCrossEntropy);
  a.gradient = x_grad || weight_grad;
  for (int64_t first = 0; first < N; first += rows) {
    const int64_t n = N - first < rows ? N - first : rows;
    const Tensor some = torch::stable::narrow(x, 0, first, n);
    const Tensor of_some = torch::stable::narrow(logits, 0, 0, n);
    product(of_some, some, torch::stable::transpose(weight, 0, 1));
    a.targets = static_cast<const int64_t*>(targets.const_data_ptr()) + first;
    a.losses = each + first;
    on_device_of(x, kCrossEntropy,
                 [&](cudaStream_t stream) { return cuda::linear_cross_entropy(a, n, stream); });
    if (weight_grad) product(summed ? part : dw, torch::stable::transpose(of_some, 0, 1), some);
    if (summed) {
      cpu::AccumulateArgs s{};
      s.part = part.const_data_ptr();
      s.sum = static_cast<float*>(sums.mutable_data_ptr());
      s.y = first + n == N ? dw.mutable_data_ptr() : nullptr;
      s.size = C;
      s.dtype = a.dtype;
      s.first = first == 0;
      on_device_of(x, kCrossEntropy, [&](cudaStream_t stream) { return cuda::accumulate(s, V, stream); });
    }
    if (x_grad) product(torch::stable::narrow(dx, 0, first, n), of_some, weight);
  }
  on_device_of(x, kCrossEntropy, [&](cudaStream_t stream) {
    return cuda::sum_losses(each, N, static_cast<float*>(loss.mutable_data_ptr()), stream);
  });
  return {loss, dx, dw};
}

}  // namespace
}  // namespace llmcli

STABLE_TORCH_LIBRARY_IMPL(llmcli, CUDA, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&llmcli::linear_cross_entropy));
}
