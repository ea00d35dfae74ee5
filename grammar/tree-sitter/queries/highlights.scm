[
  "adapt" "quantize" "train" "optimizer" "step" "let" "include" "require" "use"
  "rank" "alpha" "dropout" "lr" "lr_ratio" "batch" "tokens" "memory"
  "scaling" "dtype" "bias" "compute" "method" "init" "quant" "double" "layers" "except"
  (flag)
] @keyword

[(true) (false)] @boolean
[(number) (integer) (version)] @number
(string) @string
(regex) @string.regexp
(comment) @comment

(call plugin: (name) @function)
(choice_clause choice: (name) @constant)
(option name: (name) @variable.parameter)
(let name: (name) @variable)
((variable) @variable (#not-any-of? @variable "trainable" "peak_memory"))
((variable) @variable.builtin (#any-of? @variable.builtin "trainable" "peak_memory"))
(distribution) @module

(module) @property
(role) @attribute
(class) @type

[(wildcard) (comparison) ".." "=" ">=" "+" "-" "*" "/"] @operator
["(" ")" "[" "]" "{" "}"] @punctuation.bracket
["," "."] @punctuation.delimiter
