// The extension module llmcli._C: build facts, CPU features, and the choice of instruction set. Tensor
// operators register themselves with torch's dispatcher when this library loads; they are not here.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "../cpu/features.h"
#include "../cpu/kernels.h"

namespace py = pybind11;

namespace {

py::list available() {
  int count = 0;
  const llmcli::cpu::Kernels* const* tables = llmcli::cpu::available(&count);
  py::list names;
  for (int i = 0; i < count; ++i) names.append(tables[i]->isa);
  return names;
}

void set_isa(const std::string& name) {
  if (!llmcli::cpu::activate(name.c_str()))
    throw py::value_error("instruction set '" + name + "' is not available on this CPU; available: " +
                          py::str(", ").attr("join")(available()).cast<std::string>());
}

py::dict features() {
  const llmcli::cpu::Features& f = llmcli::cpu::features();
  py::dict d;
  d["avx2"] = f.avx2;
  d["avx512"] = f.avx512;
  d["avx512_bf16"] = f.avx512_bf16;
  d["avx512_vnni"] = f.avx512_vnni;
  d["amx"] = f.amx;
  d["neon"] = f.neon;
  return d;
}

py::dict build_info() {
  py::dict d;
  d["torch"] = TORCH_VERSION;
  d["stable_abi"] = "2.11";
#if defined(__clang__)
  d["compiler"] = std::string("clang ") + __clang_version__;
#else
  d["compiler"] = std::string("gcc ") + __VERSION__;
#endif
#if defined(LLMCLI_CUDA)
  d["cuda"] = true;
#else
  d["cuda"] = false;
#endif
  return d;
}

// Values replaced by f(value): a white-box view of the vector functions.
void elementary(const std::string& name, const py::buffer& values) {
  const py::buffer_info info = values.request(true);
  if (info.format != py::format_descriptor<float>::format() || info.ndim != 1 || info.strides[0] != 4)
    throw py::value_error("elementary: expected a writable buffer of contiguous float32");
  float* x = static_cast<float*>(info.ptr);
  if (!llmcli::cpu::active().elementary(name.c_str(), x, x, info.size))
    throw py::value_error("elementary: unknown function '" + name + "'");
}

// The best of some short runs, so that another process on the core costs no more than a few of them.
double peak_gflops(const std::string& dtype) {
  if (dtype != "float32" && dtype != "bfloat16")
    throw py::value_error("peak_gflops: expected 'float32' or 'bfloat16', got '" + dtype + "'");
  const auto kind = dtype == "float32" ? llmcli::cpu::DType::f32 : llmcli::cpu::DType::bf16;
  const py::gil_scoped_release unlocked;
  double best = 0;
  for (int run = 0; run < 40; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    const double operations = llmcli::cpu::active().multiply_add(kind, 50000);
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
    best = std::max(best, operations / time.count());
  }
  return best;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host-side facts and controls of llmcli's kernels.";
  m.def("build_info", &build_info, "Compiler, torch headers and parts this binary was built with.");
  m.def("features", &features, "What this CPU can do.");
  m.def("isa", [] { return llmcli::cpu::active().isa; }, "The instruction set in use.");
  m.def("available_isas", &available,
        "Instruction sets that this binary holds and this CPU runs, best first.");
  m.def("set_isa", &set_isa, py::arg("name"),
        "Use another instruction set; ValueError when it is not available.");
  m.def("amx_refused", &llmcli::cpu::amx_refused,
        "Whether this CPU has matrix tiles that are not used because they failed the check at start.");
  m.def(
      "multiplies_exactly", [] { return llmcli::cpu::multiplies_exactly(llmcli::cpu::active()); },
      "The check that matrix tiles must pass at start, on the instruction set in use.");
  m.def("elementary", &elementary, py::arg("name"), py::arg("values"),
        "Replace float32 values by \"exp\", \"exp_short\" or \"half_erfc\" of them, as the kernels compute "
        "it.");
  m.def("peak_gflops", &peak_gflops, py::arg("dtype"),
        "Multiply-adds per nanosecond, times two, that one thread reaches in registers with the instruction "
        "set "
        "in use (no tiles); 0 where it has no instruction for the dtype.");
}
