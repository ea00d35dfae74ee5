/// The syntax of `.lora` for editors: what `../lorakit.lark` takes, this takes, and what that refuses is an ERROR here.
/// No word is reserved: the place decides, as it does there. The end of a line means something outside of brackets only,
/// which `src/scanner.c` knows, and the rest of a target stands right behind its beginning, which `immediate` says.

const WORD = /[\p{L}\p{Nl}\p{No}_][\p{L}\p{N}_]*/;
const PIECE = /[\p{L}\p{N}_-]+/;

module.exports = grammar({
  name: "lora",

  externals: ($) => [$._end, $._goes_on, $._stray, "(", ")", "[", "]", $._index, $.number, $.integer, $.comment],
  extras: ($) => [/[ \t\r\f\n]/, $.comment],
  word: ($) => $.name,

  rules: {
    source_file: ($) => seq(optional($._statement), repeat(seq($._end, optional($._statement)))),

    _statement: ($) =>
      choice($.adapt, $.quantize, $.train, $.optimizer, $.step, $.let, $.include, $.require, $.use),

    adapt: ($) => seq("adapt", $._targets, repeat($._clause), optional($.block)),
    quantize: ($) => seq("quantize", $._targets, $._quantizer, repeat($._clause), optional($.block)),
    train: ($) => seq("train", $._targets, repeat($._clause), optional($.block)),
    optimizer: ($) => seq("optimizer", $.call, repeat($._clause), optional($.block)),
    step: ($) => seq("step", repeat($._clause), optional($.block)),
    let: ($) => seq("let", field("name", $.name), "=", field("value", choice($._expression, $.string, $.target_list))),
    include: ($) => seq("include", $.string),
    require: ($) => seq("require", $._expression, $.comparison, $._expression),
    use: ($) => seq("use", $.distribution, optional(seq(">=", $.version))),

    block: ($) => seq("{", repeat(choice($._clause, $._end)), "}"),
    _clause: ($) => choice($.value_clause, $.choice_clause, $.plugin_clause, $.layers, $.except, $.flag),
    value_clause: ($) =>
      seq(choice("rank", "alpha", "dropout", "lr", "lr_ratio", "batch", "tokens", "memory"), $._expression),
    choice_clause: ($) => seq(choice("scaling", "dtype", "bias", "compute"), field("choice", $.name)),
    plugin_clause: ($) => choice(seq(choice("method", "init"), $.call), seq("quant", $._quantizer)),
    layers: ($) => seq("layers", $._range, repeat(seq($._comma, $._range))),
    except: ($) => seq("except", $._targets),
    flag: () => choice("optional", "paged", "capture"),

    _targets: ($) => seq($._target, repeat(seq($._comma, $._target))),
    target_list: ($) => seq("[", $._target, repeat(seq($._comma, $._target)), optional($._comma), "]"),
    _target: ($) => choice($.target, $.regex),
    target: ($) =>
      choice(
        seq(
          choice(alias($._first_piece, $.module), alias($._first_star, $.wildcard)),
          optional($._more),
          optional($.index),
          repeat(seq($._dot, $._more, optional($.index))),
          optional(seq($._dot, choice(alias($._more_role, $.role), alias($._more_class, $.class)))),
        ),
        $.role,
        $.class,
      ),
    // the pieces of a segment, `up*_proj`
    _more: ($) => repeat1(choice(alias($._more_piece, $.module), alias($._more_star, $.wildcard))),
    index: ($) => seq(alias($._index, "["), $._range, repeat(seq(",", $._range)), "]"),
    _range: ($) => seq($.integer, optional(seq("..", $.integer))),

    _dot: () => alias(token.immediate("."), "."),
    _first_piece: () => token(PIECE),
    _first_star: () => token(/\*+/),
    _more_piece: () => token.immediate(prec(1, PIECE)),
    _more_star: () => token.immediate(prec(1, /\*+/)),
    role: () => token(seq("@", WORD)),
    class: () => token(seq(":", WORD)),
    _more_role: () => token.immediate(seq("@", WORD)),
    _more_class: () => token.immediate(seq(":", WORD)),
    regex: () => token(/\/(\\[^\n]|[^\/\\\n])+\//),

    _quantizer: ($) => seq($.call, optional("double")),
    call: ($) => seq(field("plugin", $.name), optional($.options)),
    options: ($) => seq("(", optional(seq($.option, repeat(seq($._comma, $.option)), optional($._comma))), ")"),
    option: ($) => seq(field("name", $.name), "=", field("value", $._item)),
    _item: ($) => choice($._expression, $.string, $.true, $.false, $.tuple),
    tuple: ($) => seq("(", $._item, repeat1(seq($._comma, $._item)), optional($._comma), ")"),

    _expression: ($) => choice($.binary, $.negative, $.group, $.number, alias($.name, $.variable)),
    binary: ($) =>
      choice(
        prec.left(1, seq($._expression, choice("+", "-"), $._expression)),
        prec.left(2, seq($._expression, choice("*", "/"), $._expression)),
      ),
    negative: ($) => prec(3, seq("-", $._expression)),
    group: ($) => seq("(", $._expression, ")"),

    // behind a comma a line may end: the scanner sees by what it could find there, and never does, where that is
    _comma: ($) => seq(",", optional($._goes_on)),
    comparison: () => token(choice("<=", ">=", "==", "!=", "<", ">")),
    true: () => "true",
    false: () => "false",
    name: () => WORD,
    string: () => token(/"(\\["\\]|[^"\\\n])*"/),
    distribution: () => token(/[A-Za-z0-9][\p{L}\p{N}_.-]*/),
    version: () => token(/[0-9][\p{L}\p{N}_.!+-]*/),
  },
});
