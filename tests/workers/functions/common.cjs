module.exports = Object.assign(require('./behaviour.cjs').main, require('./behaviour.cjs'));
