#include "program.h"

#include <string.h>

#include <stdexcept>
#include <string>

#include "frame.h"
#include "shapes.h"

namespace ridgeline {
namespace {

[[noreturn]] void refuse(const std::string& why) {
  throw std::invalid_argument("program record: " + why);
}

// Reads words in order; never beyond the end, never a count that could not fit.
class Reader {
 public:
  Reader(const int64_t* words, int64_t count) : at_(words), end_(words + count) {}

  int64_t word() {
    if (at_ == end_) refuse("it ends too early");
    return *at_++;
  }

  int64_t between(int64_t low, int64_t high, const char* what) {
    const int64_t x = word();
    if (x < low || x > high) refuse(std::string(what) + " is " + std::to_string(x));
    return x;
  }

  int64_t count(const char* what) { return between(0, end_ - at_, what); }

  double real() {
    const int64_t bits = word();
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }

  bool done() const { return at_ == end_; }

 private:
  const int64_t *at_, *end_;
};

constexpr int64_t BYTES_MAX = int64_t(1) << 46, SIZE_MAX_ROWS = INT32_MAX;

bool is_axis(int64_t axis) {
  return axis == AXIS_CONSTANT || (axis >= AXIS_T && axis <= AXIS_M);
}

Buffer read_buffer(Reader& in, const Program& p) {
  Buffer b{};
  b.offset = in.between(0, p.arena_bytes, "a buffer's offset");
  b.axis = in.between(0, BATCH_HEADER - 1, "a buffer's axis");
  b.rows = in.between(0, SIZE_MAX_ROWS, "a buffer's rows");
  b.cols = in.between(1, SIZE_MAX_ROWS, "a buffer's columns");
  b.type = (Type)in.between(0, 7, "a buffer's type");
  if (!is_axis(b.axis) || (b.axis != AXIS_CONSTANT && b.rows < p.capacity[b.axis]))
    refuse("a buffer is too short");
  if (b.offset % 64 != 0 || b.rows > (p.arena_bytes - b.offset) / b.row_bytes())
    refuse("a buffer lies outside the arena");
  return b;
}

Field read_field(Reader& in, const Program& p) {
  Field f{};
  f.offset = in.between(0, p.batch_bytes, "a field's offset");
  f.outer = in.between(0, SIZE_MAX_ROWS, "a field's rows");
  f.inner = in.between(0, SIZE_MAX_ROWS, "a field's columns");
  f.item_bytes = in.between(1, 4096, "a field's item size");
  if (f.offset % 8 != 0 || f.outer * f.inner > BYTES_MAX / f.item_bytes ||
      f.offset + f.outer * f.inner * f.item_bytes > p.batch_bytes)
    refuse("a field lies outside the batch");
  return f;
}

int64_t page_bytes(const State& s) {
  return KVView{nullptr, s.format, 0, s.n_kv_heads, s.head_dim}.page_bytes();
}

State read_state(Reader& in, const Program& p) {
  State s{};
  s.format = (KVFormat)in.between(0, 2, "a state's format");
  s.n_kv_heads = in.between(1, 65536, "a state's heads");
  s.head_dim = in.between(2, 65536, "a state's head size");
  s.group = in.between(0, 65536, "a state's group");
  s.layer = in.between(0, p.layers - 1, "a state's layer");
  if (p.layers * (p.pages + PAGE_RUN) > BYTES_MAX / page_bytes(s)) refuse("its pages are too large");
  return s;
}

// Whether a buffer of this type is what a signature calls a, b, q or i.
bool is_kind(Type t, int kind) {
  return kind == 'q' ? is_int8(t) : t == (kind == 'b' ? Type::bf16 : kind == 'i' ? Type::i32 : Type::f32);
}

bool fits(const Program& p, char wanted, const Operand& x, size_t n_weights, size_t n_vectors) {
  const bool optional = wanted >= 'A' && wanted <= 'Z';
  const int64_t i = x.index;
  if (x.kind == Kind::none) return optional && i == 0;
  if (i < 0) return false;
  switch (wanted | 0x20) {
    case 'a':
    case 'b':
    case 'q': {
      if (x.kind != Kind::buffer || i >= (int64_t)p.buffers.size()) return false;
      const Buffer& b = p.buffers[i];
      const bool within = x.start >= 0 && x.start < x.stop && x.stop <= b.cols;
      return within && (b.type == Type::f32 ? true : x.start == 0 && x.stop == b.cols) &&
             is_kind(b.type, wanted | 0x20);
    }
    case 'w':
      return x.kind == Kind::weight && i < (int64_t)n_weights;
    case 'v':
      return x.kind == Kind::vector && i < (int64_t)n_vectors;
    case 'f':
      return x.kind == Kind::field && i < (int64_t)p.fields.size();
    case 's':
      return x.kind == Kind::state && i < (int64_t)p.states.size();
    case 'h':
      return x.kind == Kind::held;
  }
  return false;
}

int64_t words_in(const char* names) {
  int64_t n = names[0] != '\0';
  for (const char* c = names; *c; c++) n += *c == ' ';
  return n;
}

void check_form(const Program& p, const Instr& i, size_t n_weights, size_t n_vectors) {
  const OpEntry& op = *i.op;
  bool good = i.operands.size() == strlen(op.operands) && i.outputs.size() == strlen(op.outputs) &&
              (int64_t)i.ints.size() == words_in(op.ints) && (int64_t)i.floats.size() == words_in(op.floats);
  for (size_t k = 0; good && k < i.operands.size(); k++)
    good = fits(p, op.operands[k], i.operands[k], n_weights, n_vectors);
  for (size_t k = 0; good && k < i.outputs.size(); k++) {
    good = i.outputs[k] >= 0 && i.outputs[k] < (int64_t)p.buffers.size() &&
           is_kind(p.buffers[i.outputs[k]].type, op.outputs[k]);
  }
  if (!good) refuse(std::string("an instruction does not have the form of ") + op.name);
}

Instr read_instr(Reader& in, const Program& p, size_t n_weights, size_t n_vectors) {
  Instr i{};
  i.op = &OPS[in.between(0, OP_COUNT - 1, "an opcode")];
  for (int64_t n = in.count("an operand count"); n > 0; n--) {
    Operand x{};
    x.kind = (Kind)in.between(0, 6, "an operand's kind");
    x.index = in.word();
    x.start = in.word();
    x.stop = in.word();
    i.operands.push_back(x);
  }
  for (int64_t n = in.count("an output count"); n > 0; n--) i.outputs.push_back(in.word());
  for (int64_t n = in.count("an attribute count"); n > 0; n--) i.ints.push_back(in.word());
  for (int64_t n = in.count("an attribute count"); n > 0; n--) i.floats.push_back(in.real());
  check_form(p, i, n_weights, n_vectors);
  return i;
}

// What an op's check looks at: fields, sizes and attributes, but neither states nor the buffers' places.
bool same_check(const Program& p, const Instr& a, const Instr& b) {
  const auto same_rows = [&](int64_t x, int64_t y) {
    return p.buffers[x].axis == p.buffers[y].axis && p.buffers[x].rows == p.buffers[y].rows;
  };
  if (a.op != b.op || a.ints != b.ints || !same_rows(a.outputs[0], b.outputs[0])) return false;
  for (size_t k = 0; k < a.operands.size(); k++) {
    const Operand &x = a.operands[k], &y = b.operands[k];
    if (x.kind != y.kind) return false;
    if (x.kind == Kind::buffer && (!same_rows(x.index, y.index) || x.stop - x.start != y.stop - y.start))
      return false;
    if ((x.kind == Kind::field || x.kind == Kind::weight) && x.index != y.index) return false;
  }
  return true;
}

// All layers of a group read the same fields, which need no second look.
void place_checks(Program& p) {
  std::vector<const Instr*> checked;
  for (Instr& i : p.instrs) {
    i.check = i.op->check != nullptr;
    for (const Instr* earlier : checked) i.check = i.check && !same_check(p, *earlier, i);
    if (i.check) checked.push_back(&i);
  }
}

// Buffers touched since the last barrier, by instructions of which each thread did its own rows of one axis.
struct Section {
  int64_t axis = -1;  // -1: empty; -2: some thread may have written any row
  std::vector<int64_t> read, written;
};

// Outputs of light ops that are no results stay with the thread that computes them.
void place_own(Program& p, const std::vector<int64_t>& results) {
  for (const Instr& i : p.instrs)
    for (int64_t o : i.outputs) p.buffers[o].own = i.op->light;
  for (int64_t r : results) p.buffers[r].own = false;
}

bool overlap(const Buffer& a, const Buffer& b) {
  return a.offset < b.end() && b.offset < a.end();
}

bool clash(const Program& p, const std::vector<int64_t>& earlier, const std::vector<int64_t>& now) {
  for (int64_t a : earlier)
    for (int64_t b : now)
      if (a != b && overlap(p.buffers[a], p.buffers[b]))
        return true;  // the same buffer has the same rows per thread
  return false;
}

// Decides where threads must meet: everywhere but between instructions of which each thread reads and writes
// only its own rows, and whose different buffers do not share memory.
void place_barriers(Program& p) {
  Section s;
  for (Instr& i : p.instrs) {
    std::vector<int64_t> reads;
    for (const Operand& x : i.operands)
      if (x.kind == Kind::buffer) reads.push_back(x.index);
    const int64_t axis = p.buffers[i.outputs[0]].axis;
    const bool joins = i.op->rows_in && s.axis == axis && !clash(p, s.written, reads) &&
                       !clash(p, s.written, i.outputs) && !clash(p, s.read, i.outputs);
    i.barrier = s.axis != -1 && !joins;
    if (i.barrier) s = Section{};
    s.axis = i.op->rows_out ? axis : -2;
    s.read.insert(s.read.end(), reads.begin(), reads.end());
    s.written.insert(s.written.end(), i.outputs.begin(), i.outputs.end());
  }
}

void place_sections(Program& p) {
  for (size_t k = p.instrs.size(); k-- > 0;) {
    Instr& i = p.instrs[k];
    const bool joined =
        i.op->light && k + 1 < p.instrs.size() && p.instrs[k + 1].op->light && !p.instrs[k + 1].barrier;
    i.section = 1 + (joined ? p.instrs[k + 1].section : 0);
  }
}

bool meets(const Program& p, const std::vector<int64_t>& earlier, int64_t now) {
  for (int64_t e : earlier)
    if (overlap(p.buffers[e], p.buffers[now])) return true;
  return false;
}

// In a step of one row threads share only what heavy ops and results write: they meet before such a buffer is
// read, and before its memory is written again.
void place_single_barriers(Program& p) {
  std::vector<int64_t> read, written;  // shared buffers touched since the last barrier
  for (Instr& i : p.instrs) {
    std::vector<int64_t> reads, writes;
    for (const Operand& x : i.operands)
      if (x.kind == Kind::buffer && !p.buffers[x.index].own) reads.push_back(x.index);
    for (int64_t o : i.outputs)
      if (!p.buffers[o].own) writes.push_back(o);
    i.barrier_single = false;
    for (int64_t b : reads) i.barrier_single |= meets(p, written, b);
    for (int64_t b : writes) i.barrier_single |= meets(p, written, b) || meets(p, read, b);
    if (i.barrier_single) read.clear(), written.clear();
    read.insert(read.end(), reads.begin(), reads.end());
    written.insert(written.end(), writes.begin(), writes.end());
  }
}

// Whether a field holds `items` int32 in each of the rows that an axis may have.
bool holds(const Program& p, int64_t field, Axis axis, int64_t items) {
  if (field < 0) return false;
  const Field& f = p.fields[field];
  return f.item_bytes == 4 && f.inner == items && f.outer >= p.capacity[axis];
}

void read_end(Reader& in, Program& p) {
  std::vector<int64_t> results;
  for (int64_t n = in.count("the result count"); n > 0; n--)
    results.push_back(in.between(0, (int64_t)p.buffers.size() - 1, "a result"));
  const int64_t last_field = (int64_t)p.fields.size() - 1;
  p.sample = in.between(0, (int64_t)p.instrs.size(), "where sampling begins");
  p.kept = in.between(-1, (int64_t)p.buffers.size() - 1, "the kept buffer");
  p.hold_slot = in.between(-1, last_field, "the hold_slot field");
  p.want = in.between(-1, last_field, "the want field");
  p.copies = in.between(-1, last_field, "the copies field");
  if (!in.done()) refuse("words are left over");
  place_own(p, results);
  if (p.copies >= 0 && !holds(p, p.copies, AXIS_C, 4)) refuse("another field than copies");
  if (p.sample < (int64_t)p.instrs.size() && !holds(p, p.want, AXIS_L, 1)) refuse("another field than want");
  if (p.kept < 0) return;
  p.buffers[p.kept].own = false;
  const Buffer& b = p.buffers[p.kept];
  if (b.type != Type::f32 || b.axis != AXIS_L || b.cols != p.held_cols)
    refuse("kept rows are not as wide as held rows");
  if (!holds(p, p.hold_slot, AXIS_L, 1) || !holds(p, p.want, AXIS_L, 1))
    refuse("other fields than hold_slot and want");
}

}  // namespace

int64_t Buffer::padded_cols() const {
  const int64_t group = group_of(type) ? group_of(type) : GROUP;
  return (cols + group - 1) / group * group;
}

int64_t Buffer::row_bytes() const {
  if (type == Type::bf16) return (cols + 1) / 2 * 4 + 64;  // rows 4 KiB apart would share cache sets
  if (!is_int8(type)) return cols * 4;
  return terms_of(type) * (padded_cols() + (group_of(type) ? padded_cols() / group_of(type) : 1) * 8);
}

Program decode(const int64_t* words, int64_t count, const std::vector<const Weight*>& weights,
               const std::vector<Vector>& vectors) {
  Reader in(words, count);
  Program p{};
  if (in.word() != RECORD_MAGIC || in.word() != RECORD_VERSION || in.word() != count)
    refuse("another format or version");
  p.arena_bytes = in.between(0, BYTES_MAX, "the arena");
  p.batch_bytes = in.between(BATCH_HEADER * 8, BYTES_MAX, "the batch");
  p.pages = in.between(0, SIZE_MAX_ROWS, "the page count");
  p.layers = in.between(0, 65536, "the layer count");
  p.held_rows = in.between(0, SIZE_MAX_ROWS, "the held row count");
  p.held_cols = in.between(0, SIZE_MAX_ROWS, "the held row size");
  if (p.held_rows * p.held_cols > BYTES_MAX / 4) refuse("held rows are too large");
  for (int64_t axis = AXIS_T; axis <= AXIS_M; axis++)
    p.capacity[axis] = in.between(0, SIZE_MAX_ROWS, "a capacity");
  for (int64_t n = in.count("the buffer count"); n > 0; n--) p.buffers.push_back(read_buffer(in, p));
  for (int64_t n = in.count("the field count"); n > 0; n--) p.fields.push_back(read_field(in, p));
  for (int64_t n = in.count("the state count"); n > 0; n--) p.states.push_back(read_state(in, p));
  for (const State& s : p.states) p.page_bytes = std::max(p.page_bytes, page_bytes(s));
  for (int64_t n = in.count("the instruction count"); n > 0; n--)
    p.instrs.push_back(read_instr(in, p, weights.size(), vectors.size()));
  for (const Instr& i : p.instrs)
    if (!shapes_agree(p, i, weights, vectors)) refuse(std::string("shapes do not agree in ") + i.op->name);
  read_end(in, p);
  place_checks(p);
  place_barriers(p);
  place_sections(p);
  place_single_barriers(p);
  return p;
}

}  // namespace ridgeline
