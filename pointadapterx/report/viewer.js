// Clouds that turn under the mouse. One WebGL context draws all of them, since browsers allow few; what it draws is
// copied into each figure's own canvas. Without WebGL it is null, and the still pictures of a report stay.
"use strict";
const viewer = (function () {
  const hidden = document.createElement("canvas");
  const gl = hidden.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
  document.documentElement.dataset.viewer = gl ? "webgl" : "still";
  if (!gl) return null;

  function shader(kind, source) {
    const made = gl.createShader(kind);
    gl.shaderSource(made, source);
    gl.compileShader(made);
    if (!gl.getShaderParameter(made, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(made));
    return made;
  }

  const program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, `
    attribute vec3 place; attribute vec3 colour; varying vec3 shown;
    uniform float turn, lift, size;
    void main() {
      float right = place.x * cos(turn) - place.z * sin(turn);
      float depth = place.x * sin(turn) + place.z * cos(turn);
      float up = place.y * cos(lift) - depth * sin(lift);
      float near = place.y * sin(lift) + depth * cos(lift);
      gl_Position = vec4(right, up, -near * 0.5, 1.0);
      gl_PointSize = size * (1.0 + 0.35 * near);
      shown = mix(vec3(1.0), colour, 0.7 + 0.3 * clamp(near * 0.5 + 0.5, 0.0, 1.0));
    }`));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, `
    precision mediump float; varying vec3 shown;
    void main() {
      if (length(gl_PointCoord - 0.5) > 0.5) discard;
      gl_FragColor = vec4(shown, 1.0);
    }`));
  gl.linkProgram(program);
  gl.useProgram(program);
  const place = gl.getAttribLocation(program, "place"), colour = gl.getAttribLocation(program, "colour");
  const uniform = name => gl.getUniformLocation(program, name);
  const turn = uniform("turn"), lift = uniform("lift"), size = uniform("size");
  const places = gl.createBuffer(), colours = gl.createBuffer();
  gl.enableVertexAttribArray(place);
  gl.enableVertexAttribArray(colour);
  gl.enable(gl.DEPTH_TEST);
  gl.clearColor(1, 1, 1, 1);

  function bytes(text) {
    const decoded = atob(text), values = new Uint8Array(decoded.length);
    for (let i = 0; i < decoded.length; i++) values[i] = decoded.charCodeAt(i);
    return values;
  }

  // Of every point, or of its patch.
  function pointColours(cloud, mode) {
    const given = bytes(cloud.modes[mode]);
    if (given.length === 3 * cloud.count) return given;
    const values = new Uint8Array(3 * cloud.count);
    for (let i = 0; i < cloud.count; i++)
      for (let c = 0; c < 3; c++) values[3 * i + c] = given[3 * cloud.patch[i] + c];
    return values;
  }

  // A canvas in the place of an element, and the view of a cloud that it shows.
  function attach(element, cloud, side, about) {
    cloud.patch = new Uint16Array(bytes(cloud.patches).buffer);
    cloud.count = cloud.patch.length;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", about + "; arrow keys turn it");
    element.replaceWith(canvas);
    const view = { canvas, cloud, points: new Int16Array(bytes(cloud.points).buffer), turn: 0.61, lift: 0.35 };
    canvas.addEventListener("pointermove", event => {
      if (!(event.buttons & 1)) return;
      move(view, event.movementX / 80, event.movementY / 80);
    });
    canvas.addEventListener("pointerdown", event => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("keydown", event => {
      const step = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[event.key];
      if (!step) return;
      event.preventDefault();
      move(view, ...step);
    });
    paint(view, Object.keys(cloud.modes)[0]);
    return view;
  }

  function paint(view, mode) {
    view.colours = pointColours(view.cloud, mode);
    draw(view);
  }

  function move(view, right, down) {
    view.turn += right;
    view.lift = Math.max(-1.5, Math.min(1.5, view.lift + down));
    draw(view);
  }

  function draw(view) {
    const side = view.canvas.width;
    if (hidden.width !== side) hidden.width = hidden.height = side;
    gl.viewport(0, 0, side, side);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.bindBuffer(gl.ARRAY_BUFFER, places);
    gl.bufferData(gl.ARRAY_BUFFER, view.points, gl.DYNAMIC_DRAW);
    gl.vertexAttribPointer(place, 3, gl.SHORT, true, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, colours);
    gl.bufferData(gl.ARRAY_BUFFER, view.colours, gl.DYNAMIC_DRAW);
    gl.vertexAttribPointer(colour, 3, gl.UNSIGNED_BYTE, true, 0, 0);
    gl.uniform1f(turn, view.turn);
    gl.uniform1f(lift, view.lift);
    gl.uniform1f(size, side / 70 * Math.min(1.6, Math.sqrt(1024 / view.cloud.count)));
    gl.drawArrays(gl.POINTS, 0, view.cloud.count);
    view.canvas.getContext("2d").drawImage(hidden, 0, 0);
  }

  return { attach, paint, move };
})();

// A report: its clouds are in the page.
(function () {
  const given = document.getElementById("clouds");
  if (!viewer || !given) return;
  const clouds = JSON.parse(given.textContent), views = [];
  for (const figure of document.querySelectorAll("figure.cloud")) {
    const image = figure.querySelector("img");
    views.push(viewer.attach(image, clouds[Number(figure.dataset.cloud)], 2 * image.width, image.alt));
  }
  for (const select of document.querySelectorAll("select.colours")) {
    select.closest("label").hidden = false;
    const section = select.closest("section");
    select.addEventListener("change", () => {
      for (const legend of section.querySelectorAll(".legend")) legend.hidden = legend.dataset.mode !== select.value;
      for (const view of views) if (view.canvas.closest("section") === section) viewer.paint(view, select.value);
    });
  }
})();
