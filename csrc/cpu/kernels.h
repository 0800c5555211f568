// What the CPU offers: argument structs and the table of entry points that every instruction set fills.
// Sizes and strides are in elements, scratch in bytes. A kernel does the work items [begin, end) it is given,
// on the calling thread, and allocates nothing; the binding owns the parallel loop. An item's result depends
// on the item alone, so the split into ranges, and with it the thread count, never changes a bit.
#pragma once
#include <cstdint>

#include "types.h"

namespace llmcli::cpu {

// Where rows lie: the nested sizes and strides above the last dimension, outermost first, as few as will do.
struct Rows {
  static constexpr int kMaxDims = 4;
  int dims;
  int64_t size[kMaxDims];
  int64_t stride[kMaxDims];
};

// Row softmax of scale * x + mask. One item is one row; scratch holds one row of floats.
struct SoftmaxArgs {
  const void* x;
  void* y;
  const void* mask;  // null, or additive (dtype of x), or bool when mask_is_bool (false = hidden)
  int64_t size;      // V
  Rows x_rows, y_rows, mask_rows;
  float scale;
  DType dtype;
  bool mask_is_bool;
  bool log;
};

// Gradient of x from that of y. One item is one row; y and dx are contiguous.
struct SoftmaxBackwardArgs {
  const void* grad;
  const void* y;
  void* dx;
  int64_t size;  // V
  Rows grad_rows;
  float scale;
  DType dtype;
  bool log;
};

// Cross-entropy of rows of logits in float32, times scale; with `gradient` that replaces the logits. One item
// is one row; scratch holds one row of floats.
struct CrossEntropyArgs {
  void* logits;            // (rows, V) contiguous
  const int64_t* targets;  // (rows); below 0: the row does not count
  double* losses;          // (rows)
  int64_t size;            // V
  float scale, smoothing;
  float cap;  // above 0: of cap * tanh(logits / cap)
  DType dtype;
  bool gradient;
  float* sums;  // (rows, 2) or null: the highest logit and the sum of e^(logit - highest)
  // cross_entropy_part: the logits are (rows, width), of the vocabulary from `first` on; it reads `sums`.
  int64_t first, width;
};

// cap * tanh(x / cap); with grad, the gradient of x. One item is one row; all contiguous.
struct SoftcapArgs {
  const void* x;
  const void* grad;
  void* y;  // or dx
  int64_t size;
  float cap;
  DType dtype;
};

// Unpacks ggml's blocks: see blocks.h. One item is kBlocksTogether blocks.
struct BlocksArgs {
  const uint8_t* data;
  void* y;
  int64_t blocks;
  BlockKind kind;
  DType dtype;  // of y
};
constexpr int64_t kBlocksTogether = 64;
constexpr int64_t block_weights(BlockKind kind) { return kind < BlockKind::q4_k ? 32 : 256; }
constexpr int64_t block_bytes(BlockKind kind) {
  constexpr int64_t kBytes[] = {18, 20, 22, 24, 34, 144, 176, 210};
  return kBytes[static_cast<int>(kind)];
}

// Whether numbers are finite. One item is kFiniteItem of them.
struct FiniteArgs {
  const void* x;  // contiguous
  int64_t size;
  DType dtype;
};
constexpr int64_t kFiniteItem = 1 << 14;

// The highest of each row and where it first stands. One item is one row.
struct ArgmaxArgs {
  const void* x;
  float* highest;  // (rows)
  int64_t* index;  // (rows)
  int64_t size;    // V, at least 1
  Rows x_rows;
  DType dtype;
};

// Log-probabilities from logits in parts of kLogprobColumns columns: see linear_logprobs.h. One item is one
// row, of a part or of the result.
struct LogprobArgs {
  const float* logits;     // (…, columns) contiguous, of row first_row first
  const int64_t* targets;  // (rows), each one of the columns of some part
  float *highest, *total;  // (rows, parts): what a part leaves
  int32_t* place;          // the same
  float* logprob;          // (rows): of the target
  int64_t* best;           // (rows): where the highest first stands
  int64_t part, parts, columns, first_row;
};
constexpr int64_t kLogprobColumns = 256;  // part of the arithmetic, see linear_logprobs.h

// Which outputs of a linear layer can be a row's highest, from a copy of its weights in eight bits: see
// linear_argmax.h. One item is one panel of 64 outputs to make the copy, else one row.
struct ScreenPackArgs {
  const void* packed;  // of linear_pack
  uint8_t* copy;       // as linear_quantized takes it
  float* errors;       // (2, panels * 64)
  int64_t inputs, panels;
  DType dtype;
};
struct ScreenArgs {
  const float* logits;       // of the copy: (…, columns) contiguous, of row first_row first
  const float *lost, *kept;  // the errors, (… * 64) each
  float* reach;              // (rows, 2): how far each of the errors carries
  float *lower, *upper;      // (rows, panels): between them lies the highest logit of each panel
  uint8_t* wanted;           // (panels): set where a row's highest may be
  int64_t panel, panels, columns, first_row;
  DType dtype;  // of the logits that count
};

// sum = part, or sum + part; where there is a y, it gets the sum, rounded, and sum is left alone. One item is
// one row; all contiguous.
struct AccumulateArgs {
  const void* part;
  float* sum;
  void* y;
  int64_t size;
  DType dtype;  // of part and y
  bool first;
};

// Layer norm, or RMS norm, of x, or of x + residual. One item is one row; outputs are contiguous.
struct NormArgs {
  const void* x;
  const void* residual;  // null, or added to x first
  const void* weight;
  const void* bias;  // null, or like weight
  void* total;       // x + residual, where there is a residual
  void* y;
  int64_t size;  // C
  Rows x_rows, residual_rows;
  float eps;
  DType dtype;
  bool wide_weight;  // weight and bias are float32, else of dtype
  bool rms;
};

// Gradients of x and, per block of rows, of weight and bias. One item is one block of kRowBlock rows.
struct NormBackwardArgs {
  const void* grad;
  const void* x;
  const void* weight;
  const void* extra;  // null, or added to dx: the gradient that reaches x + residual directly
  void* dx;
  float* partial;  // (blocks, 2, C): weight, bias; (blocks, 1, C) for RMS norm
  int64_t rows;
  int64_t size;  // C
  Rows grad_rows, x_rows, extra_rows;
  float eps;
  DType dtype;
  bool wide_weight;  // weight and bias are float32, else of dtype
  bool rms;
};

// GELU of x + bias; with grad, the gradient of x. One item is one row, or, in the gradient of a bias, one
// block of kRowBlock rows.
struct GeluArgs {
  const void* x;
  const void* bias;  // null, or (C,)
  const void* grad;
  void* y;         // or dx; contiguous
  float* partial;  // (blocks, C): gradient of bias
  int64_t rows;
  int64_t size;  // C
  Rows x_rows, grad_rows;
  DType dtype;
  bool wide_bias;  // float32, else of dtype
  bool tanh;
};

// silu(gate + gate_bias) * (up + up_bias); with grad, the gradients of gate and up. Items as in GeluArgs.
struct SiluGateArgs {
  const void* gate;
  const void* up;
  const void* gate_bias;  // both null, or both (C,)
  const void* up_bias;
  const void* grad;
  void* y;         // or the gradient of gate; contiguous
  void* dup;       // gradient of up
  float* partial;  // (blocks, 2, C): gradients of gate_bias, up_bias
  int64_t rows;
  int64_t size;  // C
  Rows gate_rows, up_rows, grad_rows;
  DType dtype;
  bool wide_bias;
};

// Rows whose contributions to one weight are summed in order before the blocks are: fixed, so that the thread
// count never matters.
constexpr int64_t kRowBlock = 32;

// y[c] = sum of x[r][c] over rows, in order. One item is one group of kColumnGroup columns.
struct ColumnSumArgs {
  const float* x;
  void* y;
  int64_t rows, columns;
  int64_t stride;  // between rows
  DType dtype;     // of y
};
constexpr int64_t kColumnGroup = 64;

// c = a b, or c + a b with `add`, of float32 matrices: a (M,K) and b (K,N) by strides, c (M,N) by rows. One
// call is one thread's; scratch holds matmul_scratch() bytes.
struct MatmulArgs {
  const float *a, *b;
  const float* bias;  // null, or (N): added to the finished sums
  float* c;
  int64_t M, N, K;
  int64_t a_m, a_k, b_k, b_n, c_m;
  bool add;
};
constexpr int64_t kMatmulDepth = 128, kMatmulPanel = 64, kMatmulRows = 240, kMatmulColumns = 1536;
inline int64_t matmul_panels(int64_t columns) {  // packed at once, in columns
  const int64_t some = columns < kMatmulColumns ? columns : kMatmulColumns;
  return (some + kMatmulPanel - 1) / kMatmulPanel * kMatmulPanel;
}
inline int64_t matmul_scratch(int64_t columns) {
  return 4 * kMatmulDepth * (matmul_panels(columns) + kMatmulRows);
}

// y = x W^T + bias on packed weights. Items: panels of 64 columns × blocks of 48 rows, panel-major.
struct LinearArgs {
  const void* x;     // (rows, inputs), rows x_stride apart
  const void* w;     // packed, see linear.h
  const void* bias;  // null or (outputs)
  void* y;           // (rows, outputs), rows y_stride apart
  int64_t rows, inputs, outputs;
  int64_t x_stride, y_stride;
  DType dtype;
  bool wide = false;  // y is float32, else of dtype
};

// Packs w (outputs, inputs), of any strides. One item is one panel of 64 columns.
struct LinearPackArgs {
  const void* w;
  void* packed;
  int64_t inputs, outputs;
  int64_t w_n, w_k;  // strides
  DType dtype;
};

// y = x W^T + bias on weights of 8 or 4 bits with a scale per group of inputs; see linear_quantized.h. Items
// of the row pass: rows of x; of the product: panels of 64 columns × blocks of 48 rows, panel-major.
struct QuantizedLinearArgs {
  const void* x;     // (rows, inputs), contiguous, of dtype
  const uint8_t* w;  // packed
  const void* bias;  // null or (outputs), of dtype
  void* y;           // (rows, outputs), contiguous, of dtype
  int8_t* q;         // (rows, quantized_inputs): x in eight bits, made by the row pass
  float* scales;     // (rows, quantized_groups): of q
  int32_t* starts;   // (rows, quantized_groups): minus the weights' offset times the sum of q
  int64_t rows, inputs, outputs;
  DType dtype;
  int bits;             // of a weight: 8 or 4
  bool blocks = false;  // ggml's: groups of 32 in either, and float16 scales
  bool wide = false;    // y is float32, else of dtype
};

// Packs w, int8 (outputs, inputs) or two weights plus 8 to a byte (outputs, ceil(inputs / 2)), and scale
// (outputs, quantized_groups), all contiguous. One item is one panel of 64 columns.
struct QuantizedPackArgs {
  const void* w;
  const bf16* scale;
  uint8_t* packed;
  int64_t inputs, outputs;
  int bits;
};
constexpr int64_t kQuantizedPanel = 64, kQuantizedBlock = 48;
constexpr int64_t quantized_group(int bits, bool blocks = false) { return bits == 8 && !blocks ? 128 : 32; }
constexpr int64_t quantized_unit(int bits) { return bits == 8 ? 4 : 8; }  // inputs that one load takes
inline int64_t quantized_groups(int64_t inputs, int bits, bool blocks = false) {
  return (inputs + quantized_group(bits, blocks) - 1) / quantized_group(bits, blocks);
}
inline int64_t quantized_inputs(int64_t inputs, int bits) {  // padded
  return (inputs + quantized_unit(bits) - 1) / quantized_unit(bits) * quantized_unit(bits);
}
inline int64_t quantized_panel_bytes(int64_t inputs, int bits, bool blocks = false) {
  return kQuantizedPanel *
         (2 * quantized_groups(inputs, bits, blocks) + quantized_inputs(inputs, bits) * bits / 8);
}

// Packs rows of ggml's blocks, Q8_0 or Q4_0, for QuantizedLinearArgs::blocks. One item is one panel.
struct BlocksPackArgs {
  const uint8_t* data;
  const int64_t* rows;  // (outputs): the byte of data at which each begins
  uint8_t* packed;
  int64_t inputs, outputs;  // inputs a multiple of 32
  int bits;
};

// Brings w (rows, inputs), rows w_stride apart, to 8 or 4 bits: see quantize.h. One item is one row.
struct QuantizeArgs {
  const void* w;
  void* q;      // int8 (rows, inputs), or two weights plus 8 to a byte (rows, ceil(inputs / 2))
  bf16* scale;  // (rows, quantized_groups)
  int64_t inputs, w_stride;
  DType dtype;
  int bits;
};

// One step of a recurrent layer of width `size`: an LSTM, whose x and h hold the products of the gates i, f,
// g, o, or, without a cell, a GRU, whose gates are r, z, n. One item is one row.
struct RecurrentCellArgs {
  const void* x;      // rows x_stride apart
  const void* h;      // contiguous, as everything below
  const void* state;  // the float32 cell of an LSTM, the hidden state of a GRU
  void* y;            // the new hidden state
  float* cell;        // the new cell, null for a GRU
  int64_t size, x_stride;
  DType dtype;
};

// Rotary position embedding of x (B,T,H,D) by strides, last dimension contiguous; y contiguous. One item is
// one position of one sequence.
struct RotaryArgs {
  const void* x;
  void* y;
  const float *cos, *sin;  // (T, half), or (B, T, half) where angle_b is not 0
  int64_t T, H, D, half;
  int64_t x_b, x_t, x_h, angle_b, angle_t;
  DType dtype;
};

// Attention: q (B,T,H,D), k and v (B,S,G,D) by strides, last dimension contiguous; out (B,T,H,D) and lse
// (B,H,T) contiguous. See attention.h for passes and items. With a cache, k and v are the T newest of S keys,
// (B,T,G,D), which cache_store puts there; the others are in its blocks, see attention_cache.h.
struct AttentionArgs {
  const void *q, *k, *v;
  char* cache;               // null, or the blocks of batch row 0 and head 0
  const void* bias;          // null, or additive, (B,H,T,S) by strides of any value
  const int64_t* k_lengths;  // null, or (B,), each in [0, S]
  void* out;
  float* lse;      // log of the sum of exponentials, -inf where a row sees nothing
  float* partial;  // split and merge passes: attention_partial() floats per item of the split pass
  int64_t B, T, S, H, G, D;
  int64_t q_b, q_t, q_h, k_b, k_s, k_g, v_b, v_s, v_g;
  int64_t bias_b, bias_h, bias_t, bias_s;
  int64_t cache_b, cache_g;  // bytes
  float scale;
  float cap;  // above 0: scaled scores s become cap * tanh(s / cap) before the bias
  bool causal;
  DType dtype, bias_dtype;
  CacheType cache_type;
};

// Their gradients: an item is one key/value head of one batch row; out and lse are the forward's.
struct AttentionBackwardArgs : AttentionArgs {
  const void* grad;  // of out, (B,T,H,D) by strides, last dimension contiguous
  int64_t grad_b, grad_t, grad_h;
  void *dq, *dk, *dv;  // contiguous
  float* dbias;        // null, or (B,H,T,S) contiguous and zero: the gradient of the scores
};

enum class AttentionPass { whole, split, merge };
constexpr int64_t kAttentionBlock = 128;  // keys; part of the arithmetic, see attention.h
constexpr int64_t kAttentionRows = 48;    // rows of a tile; a multiple of every ISA's register tile
inline int64_t attention_tiles(const AttentionArgs& a) {  // of one key/value head
  return (a.T * (a.H / a.G) + kAttentionRows - 1) / kAttentionRows;
}
inline int64_t attention_blocks(const AttentionArgs& a) {
  return (a.S + kAttentionBlock - 1) / kAttentionBlock;
}
// Bytes of one block of a cache: elements, and for int8 a scale per key and per value.
constexpr int64_t cache_width(int64_t D) { return (D + 15) / 16 * 16; }
constexpr int64_t cache_bytes(CacheType type, int64_t D) {
  const int64_t size = type == CacheType::f32 ? 4 : type == CacheType::i8 ? 1 : 2;
  return 2 * kAttentionBlock * (cache_width(D) * size + (type == CacheType::i8 ? 4 : 0));
}
// Floats of one partial result; D is rounded up to 16 lanes, the most of any ISA.
inline int64_t attention_partial(const AttentionArgs& a) {
  const int64_t rows = a.T * (a.H / a.G) < kAttentionRows ? a.T * (a.H / a.G) : kAttentionRows;
  return 2 * kAttentionRows + rows * ((a.D + 15) / 16 * 16);
}

struct Kernels {
  const char* isa;
  int lanes;  // floats in one vector
  void (*softmax)(const SoftmaxArgs& args, int64_t begin, int64_t end, float* scratch);
  void (*softmax_backward)(const SoftmaxBackwardArgs& args, int64_t begin, int64_t end);
  void (*cross_entropy)(const CrossEntropyArgs& args, int64_t begin, int64_t end, float* scratch);
  void (*cross_entropy_part)(const CrossEntropyArgs& args, int64_t begin, int64_t end);
  void (*blocks)(const BlocksArgs& args, int64_t begin, int64_t end);
  bool (*finite)(const FiniteArgs& args, int64_t begin, int64_t end);
  void (*softcap)(const SoftcapArgs& args, int64_t begin, int64_t end);
  void (*argmax)(const ArgmaxArgs& args, int64_t begin, int64_t end);
  void (*logprobs_part)(const LogprobArgs& args, int64_t begin, int64_t end);
  void (*logprobs)(const LogprobArgs& args, int64_t begin, int64_t end);
  void (*screen_pack)(const ScreenPackArgs& args, int64_t begin, int64_t end);
  void (*screen_rows)(const QuantizedLinearArgs& rows, float* reach, int64_t begin, int64_t end);
  void (*screen_panel)(const ScreenArgs& args, int64_t begin, int64_t end);
  void (*screen_choose)(const ScreenArgs& args, int64_t begin, int64_t end);
  void (*accumulate)(const AccumulateArgs& args, int64_t begin, int64_t end);
  void (*norm)(const NormArgs& args, int64_t begin, int64_t end);
  void (*norm_backward)(const NormBackwardArgs& args, int64_t begin, int64_t end);
  void (*gelu)(const GeluArgs& args, int64_t begin, int64_t end);
  void (*silu_gate)(const SiluGateArgs& args, int64_t begin, int64_t end);
  void (*column_sum)(const ColumnSumArgs& args, int64_t begin, int64_t end);
  void (*matmul)(const MatmulArgs& args, void* scratch);
  void (*linear)(const LinearArgs& args, int64_t begin, int64_t end);
  void (*linear_pack)(const LinearPackArgs& args, int64_t begin, int64_t end);
  void (*linear_quantized_rows)(const QuantizedLinearArgs& args, int64_t begin, int64_t end);
  void (*linear_quantized)(const QuantizedLinearArgs& args, int64_t begin, int64_t end);
  void (*linear_quantized_pack)(const QuantizedPackArgs& args, int64_t begin, int64_t end);
  void (*linear_blocks_pack)(const BlocksPackArgs& args, int64_t begin, int64_t end);
  void (*quantize)(const QuantizeArgs& args, int64_t begin, int64_t end);
  void (*recurrent_cell)(const RecurrentCellArgs& args, int64_t begin, int64_t end);
  void (*rotary)(const RotaryArgs& args, int64_t begin, int64_t end);
  void (*attention)(const AttentionArgs& args, AttentionPass pass, int64_t begin, int64_t end, void* scratch);
  int64_t (*attention_scratch)(const AttentionArgs& args);  // bytes, 64-byte aligned, one per thread
  // Items: heads g of batch rows b, b * G + g; of the new keys and values those of positions [from, to).
  void (*cache_store)(const AttentionArgs& args, int64_t begin, int64_t end, int64_t from, int64_t to);
  void (*attention_backward)(const AttentionBackwardArgs& args, int64_t begin, int64_t end, void* scratch);
  int64_t (*attention_backward_scratch)(const AttentionArgs& args);
  bool (*elementary)(const char* name, const float* x, float* y, int64_t n);
  double (*multiply_add)(DType dtype, int64_t rounds);
};

// One table per instruction set that this binary holds and this CPU runs, best first.
const Kernels* const* available(int* count);
const Kernels& active();
bool activate(const char* isa);  // false when it is not available
bool amx_refused();              // this CPU has tiles, but they failed multiplies_exactly

// Whether the linear layers of a table, in bfloat16, 8 and 4 bits, multiply small integers, whose sums no
// order changes, without error, and bfloat16 fractions to the same bits for one row as for many. What a table
// must do before it is offered.
bool multiplies_exactly(const Kernels& kernels);

}  // namespace llmcli::cpu
