#include "shapes.h"

#include <string.h>

#include "sample.h"

namespace ridgeline {
namespace {

struct Shapes {
  const Program& p;
  const Instr& i;
  const std::vector<const Weight*>& weights;
  const std::vector<Vector>& vectors;

  bool is(const char* name) const { return strcmp(i.op->name, name) == 0; }
  const Buffer& out(size_t at) const { return p.buffers[i.outputs[at]]; }
  const Weight& weight(size_t at) const { return *weights[i.operands[at].index]; }
  const State& state(size_t at) const { return p.states[i.operands[at].index]; }
  bool has(size_t at) const { return i.operands[at].kind != Kind::none; }
  int64_t width(size_t at) const { return i.operands[at].stop - i.operands[at].start; }

  // A missing vector fits.
  bool vector_is(size_t at, int64_t size) const {
    return !has(at) || vectors[i.operands[at].index].size == size;
  }

  // Every buffer operand and output has the same row axis and capacity.
  bool same_rows() const {
    for (const Operand& x : i.operands)
      if (x.kind == Kind::buffer && !same_rows(p.buffers[x.index], out(0))) return false;
    for (int64_t o : i.outputs)
      if (!same_rows(p.buffers[o], out(0))) return false;
    return true;
  }

  static bool same_rows(const Buffer& a, const Buffer& b) { return a.axis == b.axis && a.rows == b.rows; }

  // Every float operand and output is as wide as the first operand.
  bool same_width() const {
    for (size_t k = 0; k < i.operands.size(); k++)
      if (i.operands[k].kind == Kind::buffer && width(k) != width(0)) return false;
    for (size_t k = 0; k < i.outputs.size(); k++)
      if (out(k).cols != width(0)) return false;
    return true;
  }

  bool linear() const {
    const Weight& w = weight(1);
    if (w.cols != width(0) || w.rows != out(0).cols || !vector_is(2, w.rows)) return false;
    if (is("linear_bf16")) return w.format == Format::bf16;
    return !is("linear_i8") || multiplies(layout(w.format), p.buffers[i.operands[0].index].type);
  }

  // Activations have a scale for each unit of the weight; or, where the weight has one per row, also one per
  // row.
  static bool multiplies(const Layout& l, Type x) {
    return !l.is_float() && (group_of(x) == l.unit() || (l.scales == Scales::channel && group_of(x) == 0));
  }

  bool rope() const {
    const int64_t dim = i.ints[0];
    return dim > 0 && width(0) % dim == 0 && width(1) % 2 == 0 && width(1) <= dim && out(0).cols == width(0);
  }

  bool norm() const {
    const int64_t width0 = is("rms_norm") && i.ints[0] ? i.ints[0] : width(0);
    const size_t w = is("add_rms_norm") ? 2 : 1;
    return width0 > 0 && width(0) % width0 == 0 && vector_is(w, width0) && same_width() &&
           (!is("layer_norm") || vector_is(2, width0));
  }

  bool attention() const {
    const int64_t heads = i.ints[0], kv_heads = state(3).n_kv_heads, dim = state(3).head_dim;
    return heads > 0 && heads <= width(0) && heads % kv_heads == 0 && width(0) == heads * dim &&
           width(1) == kv_heads * dim && width(2) == kv_heads * dim && out(0).cols == heads * dim &&
           i.ints[1] >= 0 && vector_is(9, heads) && vector_is(10, heads);
  }

  bool sample() const {
    const int64_t words = has(7) ? p.fields[i.operands[7].index].inner : 0;
    return out(0).cols == 1 && out(1).cols == 1 && out(2).cols == MAX_TOP && out(3).cols == MAX_TOP &&
           (p.capacity[AXIS_M] == 0 || words * 32 >= width(0));
  }

  // Every field operand has items of the declared size, as many as the op's rows or the declared axis may
  // need. A missing one has none, which only an optional operand per row may have.
  bool fields() const {
    const char* extent = i.op->fields;
    for (size_t k = 0; k < i.operands.size(); k++) {
      const char kind = i.op->operands[k];
      if (kind == 'f' && !field_holds(k, *extent++)) return false;
      if (kind == 'F' && !field_holds(k, *extent++) && !(extent[-1] == 'r' && !has_room(k))) return false;
    }
    return true;
  }

  bool has_room(size_t at) const {
    if (!has(at)) return false;
    const Field& f = p.fields[i.operands[at].index];
    return f.outer > 0 && f.inner > 0;
  }

  bool field_holds(size_t at, char extent) const {
    const Field f = has(at) ? p.fields[i.operands[at].index] : Field{0, 0, 0, 4};
    const int64_t rows = out(0).rows, axis = extent == 'x' ? i.ints[0] : 0;
    if (f.item_bytes != (extent == 's' ? (int64_t)sizeof(Sampler) : 4)) return false;
    switch (extent) {
      case 'x':
        return axis >= 0 && axis < f.outer && (f.outer - axis) * f.inner >= rows;
      case 'r':
      case 's':
        return f.inner == 1 && f.outer >= rows;
      case 'E':
        return f.inner == 1 && f.outer >= p.capacity[AXIS_E];
      case 'H':
        return f.inner == 1 && f.outer >= p.capacity[AXIS_H];
      case 'M':
        return f.outer >= p.capacity[AXIS_M];
      default:
        return true;
    }
  }
};

}  // namespace

bool shapes_agree(const Program& p, const Instr& i, const std::vector<const Weight*>& weights,
                  const std::vector<Vector>& vectors) {
  const Shapes s{p, i, weights, vectors};
  if (!s.fields()) return false;
  if (s.is("take_rows")) return s.out(0).cols == s.width(0) && (!s.has(2) || p.held_cols == s.width(0));
  if (!s.same_rows()) return false;
  if (s.is("embedding"))
    return s.weight(1).cols == s.out(0).cols &&
           (!s.has(3) || p.fields[i.operands[3].index].inner == s.out(0).cols);
  if (s.is("rotary")) return s.out(0).cols % 2 == 0 && s.vector_is(1, s.out(0).cols / 2);
  if (s.is("linear") || s.is("linear_i8") || s.is("linear_bf16")) return s.linear();
  if (s.is("rope")) return s.rope();
  if (s.is("rms_norm") || s.is("add_rms_norm") || s.is("layer_norm")) return s.norm();
  if (s.is("attention")) return s.attention();
  if (s.is("sample")) return s.sample();
  return s.same_width();
}

}  // namespace ridgeline
