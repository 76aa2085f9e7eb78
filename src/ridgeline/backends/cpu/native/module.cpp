// The Python module: pools, packed weights, memory and steps. No kernel is reachable but through a step.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "ceilings.h"
#include "counts.h"
#include "load.h"
#include "pack.h"
#include "step.h"

namespace nb = nanobind;
using namespace ridgeline;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

static const Kernels& kernels_of(const std::string& isa) {
  const Kernels* kernels = find_kernels(isa.c_str());
  if (!kernels) throw std::invalid_argument("this machine cannot run ISA level " + isa);
  return *kernels;
}

// A weight packed into memory that holds others too; nanobind keeps that memory alive.
struct PackedWeight {
  Weight weight;
};

static uint8_t* place(HugeMemory& memory, int64_t offset, int64_t bytes) {
  if (offset < 0 || offset % 64 != 0 || offset > (int64_t)memory.bytes() - bytes)
    throw std::invalid_argument("a weight does not fit its memory");
  return memory.data() + offset;
}

static void make_weight(PackedWeight* self, Pool& pool, const std::string& format, const Bytes& raw,
                        int64_t rows, int64_t cols, HugeMemory& memory, int64_t offset) {
  nb::gil_scoped_release release;
  uint8_t* out = place(memory, offset, packed_bytes(format.c_str(), rows, cols));
  new (self) PackedWeight{pack(pool, format.c_str(), raw.data(), raw.size(), rows, cols, out)};
}

static void place_weight(PackedWeight* self, const std::string& format, int64_t rows, int64_t cols,
                         HugeMemory& memory, int64_t offset) {
  const uint8_t* data = place(memory, offset, packed_bytes(format.c_str(), rows, cols));
  new (self) PackedWeight{packed(format.c_str(), data, rows, cols)};
}

// Places of packed weights: (offset, bytes, bytes of a panel) for each.
using Places = std::vector<std::tuple<int64_t, int64_t, int64_t>>;

static std::vector<Stored> stored_at(HugeMemory& memory, const Places& places) {
  std::vector<Stored> weights;
  for (const auto& [offset, bytes, panel_bytes] : places) {
    if (panel_bytes < 8 || panel_bytes % 8 != 0 || bytes < 0 || bytes % panel_bytes != 0)
      throw std::invalid_argument("weights are whole panels");
    place(memory, offset, bytes);
    weights.push_back({offset, bytes, panel_bytes});
  }
  return weights;
}

static std::vector<uint64_t> sum_memory(Pool& pool, HugeMemory& memory, const Places& places) {
  const std::vector<Stored> weights = stored_at(memory, places);
  nb::gil_scoped_release release;
  return checksums(pool, memory.data(), weights);
}

static std::vector<uint64_t> read_file(Pool& pool, int fd, int64_t start, HugeMemory& memory,
                                       const Places& places) {
  const std::vector<Stored> weights = stored_at(memory, places);
  nb::gil_scoped_release release;
  return read_panels(pool, fd, start, memory.data(), weights);
}

static void unpack(const PackedWeight& w, int64_t row, FloatsOut out) {
  if (row < 0 || row >= w.weight.rows || (int64_t)out.size() != w.weight.cols)
    throw std::invalid_argument("no such row, or a row of another size");
  unpack_row(w.weight, row, out.data());
}

static void make_step(Step* self, Pool& pool, const std::string& isa, const Words& record,
                      const std::vector<const PackedWeight*>& packed, const std::vector<Floats>& vectors,
                      HugeMemory& kv, HugeMemory& arena) {
  std::vector<const Weight*> weights;
  for (const PackedWeight* w : packed) weights.push_back(&w->weight);
  std::vector<Vector> flat;
  for (const Floats& v : vectors) flat.push_back({v.data(), (int64_t)v.size()});
  Program program = decode(record.data(), (int64_t)record.size(), weights, flat);
  if ((int64_t)kv.bytes() < Step::kv_bytes(program) || (int64_t)arena.bytes() < program.arena_bytes)
    throw std::invalid_argument("the program's memory is smaller than the program says");
  new (self) Step(pool, kernels_of(isa), std::move(program), std::move(weights), std::move(flat), kv.data(),
                  arena.data());
}

static void run_step(Step& step, const Bytes& batch) {
  nb::gil_scoped_release release;
  step.run(batch.data(), (int64_t)batch.size());
}

static nb::list profile_step(Step& step, const Bytes& batch) {
  std::vector<InstrTime> times;
  {
    nb::gil_scoped_release release;
    times = step.profile(batch.data(), (int64_t)batch.size());
  }
  nb::list out;
  for (const InstrTime& t : times) out.append(nb::make_tuple(t.wait, t.work));
  return out;
}

static double measured_read(Pool& pool, const std::string& isa, const HugeMemory& memory, int64_t bytes,
                            int64_t rounds) {
  nb::gil_scoped_release release;
  return read_gb_s(pool, kernels_of(isa), memory, bytes, rounds);
}

static double measured_peak(Pool& pool, const std::string& isa, const std::string& kind) {
  const char* const kinds[] = {"int8", "bf16", "f32"};
  for (int64_t i = 0; i < 3; i++)
    if (kind == kinds[i]) {
      nb::gil_scoped_release release;
      return peak_gops(pool, kernels_of(isa), (Arithmetic)i);
    }
  throw std::invalid_argument("no arithmetic is called " + kind + ": int8, bf16 or f32");
}

static nb::list op_signatures() {
  nb::list out;
  for (int i = 0; i < OP_COUNT; i++) {
    const OpEntry& op = OPS[i];
    out.append(nb::make_tuple(op.name, op.names, op.operands, op.outputs, op.ints, op.floats));
  }
  return out;
}

#ifdef RIDGELINE_COUNT
static nb::dict counts() {
  const char* const kinds[] = {"weights", "kv_read", "kv_written", "acts", "macs", "again"};
  nb::dict out;
  for (const auto& [op, counted] : take_counts()) {
    nb::dict of;
    for (size_t k = 0; k < counted.size(); k++) of[kinds[k]] = counted[k];
    out[op.c_str()] = of;
  }
  return out;
}
#endif

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // what a process still holds when it exits is no news to its user
  m.attr("RECORD_MAGIC") = RECORD_MAGIC;
  m.attr("RECORD_VERSION") = RECORD_VERSION;
  m.attr("LAYOUT_VERSION") = LAYOUT_VERSION;
  m.attr("PANEL") = PANEL;
  m.attr("PAGE_RUN") = PAGE_RUN;
  m.def("op_signatures", op_signatures,
        "(name, operand names, operand kinds, outputs, ints, floats) by opcode");
  m.def(
      "isa", [](const std::string& isa) { return std::string(kernels_of(isa).isa); }, nb::arg("isa") = "",
      "The named ISA level if this machine runs it, or the best one it runs");

  m.def(
      "packed_bytes",
      [](const std::string& f, int64_t rows, int64_t cols) { return packed_bytes(f.c_str(), rows, cols); },
      nb::arg("format"), nb::arg("rows"), nb::arg("cols"), "Bytes of a weight of this file format in panels");

#ifdef RIDGELINE_COUNT
  m.def("counts", counts, "Bytes and multiply-adds since this was last asked, by op and kind");
#endif

  nb::class_<Pool>(m, "Pool")
      .def(nb::init<int, std::vector<int>>(), nb::arg("threads"), nb::arg("cpus") = std::vector<int>())
      .def_prop_ro("threads", &Pool::threads)
      .def(
          "count_in",
          [](Pool& pool, nb::ndarray<uint64_t, nb::shape<1>, nb::c_contig, nb::device::cpu> counter) {
            pool.progress = (std::atomic<uint64_t>*)counter.data();
          },
          nb::arg("counter"), nb::keep_alive<1, 2>(), "Counts barriers of steps in this memory");

  nb::class_<HugeMemory>(m, "Memory")
      .def(nb::init<size_t>(), nb::arg("nbytes"))
      .def(
          "array",
          [](HugeMemory& m) {
            return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(m.data(), {m.bytes()}, nb::find(m));
          },
          nb::sig("def array(self) -> numpy.ndarray"), "The bytes, shared and writable");

  nb::class_<PackedWeight>(m, "PackedWeight")
      .def("__init__", make_weight, nb::arg("pool"), nb::arg("format"), nb::arg("raw"), nb::arg("rows"),
           nb::arg("cols"), nb::arg("memory"), nb::arg("offset"), nb::keep_alive<1, 7>())
      .def("__init__", place_weight, nb::arg("format"), nb::arg("rows"), nb::arg("cols"), nb::arg("memory"),
           nb::arg("offset"), nb::keep_alive<1, 5>(), "Panels that lie in the memory already")
      .def("unpack", unpack, nb::arg("row"), nb::arg("out"), "Write row `row` as float32 into `out` [cols]");

  nb::class_<Step>(m, "Step")
      .def("__init__", make_step, nb::arg("pool"), nb::arg("isa"), nb::arg("record"), nb::arg("weights"),
           nb::arg("vectors"), nb::arg("kv"), nb::arg("arena"), nb::keep_alive<1, 2>(),
           nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>())
      .def("run", run_step, nb::arg("batch"), "Run a batch")
      .def("profile", profile_step, nb::arg("batch"),
           "Run a batch; seconds (waited before it, in it) of each instruction, and waited at the end");

  m.def("checksums", sum_memory, nb::arg("pool"), nb::arg("memory"), nb::arg("places"),
        "A sum of each weight's panels; places are (offset, bytes, bytes of a panel)");
  m.def("read_panels", read_file, nb::arg("pool"), nb::arg("fd"), nb::arg("start"), nb::arg("memory"),
        nb::arg("places"), "Read panels from a file, which holds them from `start` on, and sum them");

  m.def("touch", touch, nb::arg("pool"), nb::arg("memory"), nb::call_guard<nb::gil_scoped_release>(),
        "Write all of a memory, each thread its own share");
  m.def("read_gb_s", measured_read, nb::arg("pool"), nb::arg("isa"), nb::arg("memory"), nb::arg("nbytes"),
        nb::arg("rounds"), "GB/s of passes over `nbytes` of a touched memory that do nothing but load");
  m.def(
      "peak_gops", measured_peak, nb::arg("pool"), nb::arg("isa"), nb::arg("kind"),
      "1e9 operations a second of int8, bf16 or f32 multiply-adds out of registers; 0: no such instruction");
  m.def("barrier_ns", barrier_ns, nb::arg("pool"), nb::call_guard<nb::gil_scoped_release>(),
        "Nanoseconds of one round of the pool's barrier");
}
